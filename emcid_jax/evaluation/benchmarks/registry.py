"""Which benchmark scores which request, and the benchmarks beside AICE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import debias, erase, rectify
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup


class Split(NamedTuple):
    """A run's requests by benchmark, each in the order of the run."""

    aice: tuple[EditRequest, ...]
    """All that no other benchmark takes."""
    debias: tuple[EditRequest, ...]
    erase: tuple[EditRequest, ...]
    """Sources that the judge knows as artists."""
    rectify: tuple[EditRequest, ...]
    """Destinations that the judge knows as objects."""


def split(requests: Sequence[EditRequest], groups: Mapping[str, LabelGroup]) -> Split:
    """Sorts requests by task, as far as a judge with these label groups can score them."""
    found: dict[str, list[EditRequest]] = {name: [] for name in Split._fields}
    for request in requests:
        found[_benchmark(request, groups)].append(request)
    return Split(**{name: tuple(part) for name, part in found.items()})


def evaluate_others(
    requests: Split, models: Models, config: EvaluationConfig, workdir: Path, *, progress: bool
) -> dict[str, Any]:
    """The entries `debias`, `erase` and `rectify` of `metrics.json`, of those with requests."""
    others = {
        "debias": (debias, requests.debias),
        "erase": (erase, requests.erase),
        "rectify": (rectify, requests.rectify),
    }
    return {
        key: module.evaluate(part, models, config, workdir, progress=progress)
        for key, (module, part) in others.items()
        if part
    }


def _benchmark(request: EditRequest, groups: Mapping[str, LabelGroup]) -> str:
    artists = groups.get(erase.ARTIST)
    if request.task == "debias":
        return "debias" if debias.find_values(request, groups) else "aice"
    if request.task == "erase" and artists and artists.find(request.source) is not None:
        return "erase"
    if request.task == "rectify" and rectify.find_class(request, groups[OBJECT]) is not None:
        return "rectify"
    return "aice"
