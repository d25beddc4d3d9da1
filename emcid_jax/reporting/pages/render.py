"""Pages from the templates beside this file.

Jinja escapes every value, and an unknown name is an error. Pictures and styles are part of a page,
which needs no network and no script.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.reporting.tables import short

THUMBNAIL = 256
"""Longer side in pixels above which pictures are made smaller."""
CRISP = 128
"""Pictures up to this size are enlarged without smoothing."""
_MARKS = frozenset("\\`*_{}[]()#+-.!|<>&~$:@\"'")


def render(template: str, **values: object) -> str:
    """The page that `templates/<template>` makes of the values."""
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates and their filters."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("emcid_jax.reporting.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (cell, data_uri, number, percent, place, thumbnail)
    made.filters |= {filter_.__name__: filter_ for filter_ in filters}
    made.filters |= {
        "short": short,
        "median": np.median,
        "json": functools.partial(json.dumps, indent=2, ensure_ascii=False, default=str),
    }
    return made


def number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """Decimals with a true minus sign; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''}.{places}f}"
    if float(text) == 0:
        text = f"{0:.{places}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Two figures of a share in per cent, as decimals however small it is."""
    return f"{float(f'{100 * share:.1e}'):.10f}".rstrip("0").rstrip(".") + " %"


def cell(text: str) -> Markup:
    """Text as it is, in a table of Markdown: nothing in it is a mark, a link or a cell's end."""
    words = " ".join(text.split())
    marked = (f"&#{ord(sign)};" if sign in _MARKS else sign for sign in words)
    return Markup("".join(marked))


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A `data:` address that holds the content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class Picture(NamedTuple):
    """A PNG file as a page shows it."""

    content: bytes
    width: int
    height: int
    crisp: bool
    """Whether it is enlarged without smoothing."""


def thumbnail(path: Path) -> Picture:
    """The picture, made smaller if it is large."""
    from PIL import Image

    with Image.open(path) as image:
        crisp = max(image.size) <= CRISP
        if max(image.size) <= THUMBNAIL:
            return Picture(path.read_bytes(), *image.size, crisp)
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), *small.size, crisp)


def place(value: float, metric: Metric) -> float:
    """Where a value lies on a gauge from 0 to the metric's bound: 4 is left, 196 is right."""
    share = (value - min(0.0, metric.bound)) / max(abs(metric.bound), 1e-9)
    return round(4 + 192 * min(max(share, 0.0), 1.0), 1)
