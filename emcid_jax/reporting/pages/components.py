"""HTML pieces of the report. Everything that comes from a request or a config is escaped here."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emcid_jax.evaluation.benchmarks.aice_gallery import Pair, Seen
from emcid_jax.evaluation.statistics.bootstrap import Metric
from emcid_jax.reporting.pages.style import CSS

THUMBNAIL = 256
"""Longer side in pixels above which pictures are made smaller."""
CRISP = 128
"""Pictures up to this size are enlarged without smoothing."""


def escape(value: object) -> str:
    """Text for HTML, quotes included."""
    return html.escape(str(value), quote=True)


def number(value: float | None, sign: bool = False) -> str:
    """Three decimals with a true minus sign; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    if float(text) == 0:
        text = "0.000"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(metric: Metric) -> str:
    """The 95 % interval as text, empty when there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low)} … {number(metric.high)}"


def data_uri(content: bytes, kind: str) -> str:
    """A `data:` address holding the file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(seen: Seen, caption: str, alt: str, name: str = "") -> str:
    """A kept picture with what the judge sees in it; its label is left out if it is `name`."""
    label = "" if seen.label == name else f"{escape(seen.label)} "
    return plain_picture(seen.path, caption, alt, f" {label}{seen.probability:.2f}")


def plain_picture(path: Path, caption: str, alt: str, more: str = "") -> str:
    """A picture with a caption; `more` is HTML that follows it."""
    content, width, height = _thumbnail(path)
    crisp = ' class="crisp"' if max(width, height) <= CRISP else ""
    return (
        f'<figure><img{crisp} src="{data_uri(content, "image/png")}" width="{width}" '
        f'height="{height}" alt="{escape(alt)}"><figcaption><b>{escape(caption)}</b>{more}'
        "</figcaption></figure>"
    )


def _thumbnail(path: Path) -> tuple[bytes, int, int]:
    from PIL import Image

    with Image.open(path) as image:
        if max(image.size) <= THUMBNAIL:
            return path.read_bytes(), image.width, image.height
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        small.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), small.width, small.height


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page, which needs nothing but itself."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def settings(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """How a run was made, folded; what is empty is left out."""
    if not config and not versions:
        return ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in versions.items()
    )
    parts = []
    if config:
        text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
        parts.append(
            f"<details><summary>Settings of this run</summary><pre>{escape(text)}</pre></details>"
        )
    if rows:
        parts.append(
            "<details><summary>Versions and device</summary>"
            f'<div class="scroll"><table>{rows}</table></div></details>'
        )
    return f"<section><h2>Settings and versions</h2>{''.join(parts)}</section>"


def card(change: str, gain: float, prompt: str, pictures: Sequence[str]) -> str:
    """Pictures of one request, `change` in words, with how much the destination gained."""
    tone = "good" if gain > 0.5 else "bad" if gain < 0.1 else ""
    return (
        f'<article class="pair"><header><span>{escape(change)}</span>'
        f'<span class="{tone}">{number(gain, sign=True)}</span></header>'
        f'<p class="prompt">“{escape(prompt)}”</p>'
        f'<div class="trio">{"".join(pictures)}</div></article>'
    )


def request_card(pair: Pair, source: str, dest: str, gain: float) -> str:
    """A request's pictures: before, after, and the destination as the clean model draws it."""
    shots = [
        picture(pair.before, "before", f"before the edit: {pair.prompt}"),
        picture(pair.after, "after", f"after the edit: {pair.prompt}"),
    ]
    if pair.wanted is not None:
        shots.append(picture(pair.wanted, "wanted", f"{dest}, drawn by the clean model"))
    return card(f"{source} → {dest}", gain, pair.prompt, shots)


def holdout_card(pair: Pair) -> str:
    """A hold-out class before and after."""
    before = picture(pair.before, "before", f"before the edit: {pair.prompt}", pair.name)
    after = picture(pair.after, "after", f"after the edit: {pair.prompt}", pair.name)
    return f'<div><h4>{escape(pair.name)}</h4><div class="duo">{before}{after}</div></div>'


def plot(svg: bytes, alt: str, caption: str) -> str:
    """A matplotlib figure with its caption."""
    return (
        f'<figure class="plot"><img src="{data_uri(svg, "image/svg+xml")}" alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def gauge(metric: Metric) -> str:
    """A bar from 0 to the value, its interval, and the range that the protocol allows."""
    left = min(0.0, metric.bound)
    width = max(abs(metric.bound), 1e-9)

    def x(value: float) -> float:
        return 4 + 192 * min(max((value - left) / width, 0.0), 1.0)

    zero, end = x(0.0), x(metric.value)
    parts = [
        '<rect x="4" y="8" width="192" height="8" rx="4" fill="#e9edf0"/>',
        f'<rect x="{min(zero, end):.1f}" y="8" width="{max(abs(end - zero), 1.5):.1f}" '
        'height="8" rx="2" fill="#0072b2"/>',
    ]
    if metric.reachable is not None:
        parts.append(
            f'<path d="M{x(metric.reachable):.1f} 4v16" stroke="#d55e00" stroke-width="2"/>'
        )
    if metric.low is not None and metric.high is not None:
        parts.append(
            f'<path d="M{x(metric.low):.1f} 12H{x(metric.high):.1f}M{x(metric.low):.1f} 8v8'
            f'M{x(metric.high):.1f} 8v8" stroke="#22303c" stroke-width="1.2" fill="none"/>'
        )
    ends = ("0", f"limit {number(metric.bound)}")
    first, last = ends if metric.bound > 0 else ends[::-1]
    return (
        '<svg class="gauge" viewBox="0 0 200 24" preserveAspectRatio="none" role="img" '
        f'aria-label="{number(metric.value)} of {number(metric.bound)}">{"".join(parts)}</svg>'
        f'<div class="ends"><span>{first}</span><span>{last}</span></div>'
    )


def table(head: Sequence[str], rows: Iterable[str], kind: str = "scroll") -> str:
    """A table that scrolls sideways on a narrow screen; `head` cells and rows are HTML."""
    return (
        f'<div class="{kind}"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cells(values: Iterable[str], kind: str = "n") -> str:
    """Table cells from HTML."""
    return "".join(f'<td class="{kind}">{value}</td>' for value in values)
