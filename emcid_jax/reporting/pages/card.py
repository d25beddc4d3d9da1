"""The model card (`README.md`) of an export: what it is made of, what is in it, how it scored.

Its last line has a checksum, by which a card that somebody has changed is known.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from emcid_jax.concepts.readers.yaml_text import parse_yaml
from emcid_jax.editing.export.edit_file import ledger_of
from emcid_jax.editing.export.into_folder import CARD
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.reporting.pages.render import render
from emcid_jax.reporting.published import MEANINGS
from emcid_jax.runtime.errors import Failures, UserError
from emcid_jax.storage import checksums
from emcid_jax.storage.text_files import read_json_object, read_text

_HEADER = re.compile(r"---\r?\n(.*?)^---\r?$", re.DOTALL | re.MULTILINE)
"""What the Hub reads of a card."""
Kind = Literal["folder", "lora", "diff", "clip", "checkpoint"]
_TAGS = {"lora": ("lora",), "diff": ("lora",)}
_LIBRARY = ("folder", "lora")
"""What diffusers loads."""
_ADAPTERS = ("lora", "diff")
_ACCURACIES = {
    "acc_e": ("Acc_e: an edited name is still read as itself", "lower"),
    "acc_s": ("Acc_s: an unedited name is read right", "higher"),
    "acc_g": ("Acc_g: other names of an edited one are still read as itself", "lower"),
    "h_o": ("H_o: the harmonic mean of the three", "higher"),
    "h_c": ("H_c: that of the first two", "higher"),
}
"""Name in `metrics.json` -> what it is, and which way is better."""


@dataclasses.dataclass(frozen=True)
class CardData:
    """What a card says."""

    kind: Kind
    """Which export it is of."""
    files: tuple[str, ...]
    """Names of what is exported."""
    ledger: Mapping[str, Any]
    """The edit's."""
    base_model: str = ""
    """Hub id of the base model, if known."""
    license: str = ""
    """Of the base model, as the Hub names it, if known."""
    place: str = "model"
    """Hub id or folder that the exported files are loaded from."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Content of `metrics.json`, see `metrics_of`."""


class Score(NamedTuple):
    """A row of the table of scores."""

    benchmark: str
    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    best: str
    """Which way is better; empty if nobody says."""


def card(data: CardData) -> bytes:
    """The page, which the Hub and `is_card` know."""
    ledger = data.ledger
    requests = sorted(ledger["requests"], key=lambda request: request["source"])
    count = f"{len(requests)} concepts" if len(requests) != 1 else "one concept"
    reports = {name: ledger_of(ledger, name)["report"] for name in _encoders(ledger)}
    text = render(
        "card.md.jinja",
        header=yaml.safe_dump(_header(data), sort_keys=False, allow_unicode=True),
        title=f"EMCID edit of {count}",
        count=count,
        base=data.base_model or "a text-to-image model",
        requests=requests,
        encoders=[(name, ledger["base"][name]) for name in reports],
        written=[_written(name, ledger_of(ledger, name)) for name in reports],
        wider=any(
            units and not units.get("room")
            for units in (report.get("units") for report in reports.values())
        ),
        scores=list(_scores(data.metrics)),
        unsealed=checksums.UNSEALED,
        **{
            name: getattr(data, name)
            for name in ("kind", "files", "base_model", "license", "place")
        },
    )
    return checksums.sealed(text.encode())


def is_card(content: bytes) -> bool:
    """Whether `content` is what `card` gave, to the byte."""
    return checksums.is_intact(content)


def base_license(folder: Path) -> str:
    """The licence that the `README.md` of a model's folder names for the Hub; empty if none."""
    try:
        text = read_text(folder / CARD, "the base model's card", 2**20)
    except UserError:
        return ""
    found = _HEADER.match(text)
    about = parse_yaml(found[1], Failures(folder / CARD)) if found else None
    licence = about.get("license") if isinstance(about, dict) else None
    return licence if isinstance(licence, str) else ""


def metrics_of(edit: Path, ledger: Mapping[str, Any]) -> Mapping[str, Any]:
    """`metrics.json` beside an edit file, if it tells of just this edit; else nothing.

    UserError if it cannot be read.
    """
    file = edit.with_name("metrics.json")
    if not file.exists():
        return {}
    found = read_json_object(file, "metrics beside config.edit")
    more = {name: about["report"] for name, about in ledger.get("encoders", {}).items()}
    written = ledger["report"] | ({"encoders": more} if more else {})
    return found if found.get("stage_two") == written else {}


def _header(data: CardData) -> dict[str, Any]:
    """What the Hub reads of a card."""
    base: dict[str, Any] = {}
    if data.base_model:
        relation = "adapter" if data.kind in _ADAPTERS else "finetune"
        base = {"base_model": data.base_model, "base_model_relation": relation}
    return {
        **({"license": data.license} if data.license else {}),
        **base,
        **({"library_name": "diffusers"} if data.kind in _LIBRARY else {}),
        "pipeline_tag": "text-to-image",
        "tags": ["emcid", "concept-editing", *_TAGS.get(data.kind, ())],
    }


def _encoders(ledger: Mapping[str, Any]) -> list[str]:
    """The text encoders that are edited."""
    report = ledger["report"]
    first = [FIRST] if report["layers"] or report.get("units") else []
    return [*first, *ledger.get("encoders", {})]


def _written(name: str, about: Mapping[str, Any]) -> str:
    """How a text encoder was edited."""
    report, captions = about["report"], about["moments"].get("captions")
    how = f"{name}: solver {about['stage_two'].get('solver', 'ridge')}"
    if units := report.get("units"):
        how += f", {len(units['gates'])} concept units"
    if layers := [str(one["layer"]) for one in report["layers"]]:
        how += f", blocks {', '.join(layers)}"
    known = f", statistics of {captions:,} captions" if isinstance(captions, int) else ""
    before, after = report["distance_before"], report["distance_after"]
    return f"{how}{known}; distance to the targets {before:.3g} before, {after:.3g} after"


def _scores(metrics: Mapping[str, Any]) -> Iterator[Score]:
    """The aggregates of every benchmark that was run."""
    known = {name: (f"{one.group}: {one.name}", one.best) for name, one in MEANINGS.items()}
    known |= _ACCURACIES
    groups = [("AICE", metrics.get("aice")), ("erasure", metrics.get("accuracy"))]
    groups += [(name, metrics.get(name, {}).get("metrics")) for name in ("erase", "rectify")]
    for benchmark, group in groups:
        for name, found in (group or {}).items():
            said, best = known.get(name, (name, ""))
            if not name.startswith("pre_"):  # Of the base model.
                fields = {field: found[field] for field in ("value", "low", "high", "count")}
                yield Score(benchmark=benchmark, name=said, best=best, **fields)
