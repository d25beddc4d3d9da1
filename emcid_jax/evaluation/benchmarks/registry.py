"""Which benchmark scores which request, and the benchmarks beside AICE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import EvaluationConfig
from emcid_jax.evaluation.benchmarks import debias, erase, rectify
from emcid_jax.evaluation.drawing.before_after import Models
from emcid_jax.evaluation.judges.labels import LabelGroup


class Benchmark(Protocol):
    """What the module of a benchmark has."""

    def takes(self, request: EditRequest, groups: Mapping[str, LabelGroup]) -> bool:
        """Whether a judge with these label groups can score the request by it."""
        ...

    def evaluate(
        self,
        requests: Sequence[EditRequest],
        models: Models,
        config: EvaluationConfig,
        workdir: Path,
        *,
        progress: bool,
    ) -> dict[str, Any]:
        """Draws, judges and scores; JSON values only."""
        ...


BENCHMARKS: Mapping[str, Benchmark] = {"debias": debias, "erase": erase, "rectify": rectify}
"""By the entry of `metrics.json`; a request goes to the first that takes it."""
AICE = "aice"
"""The entry of all other requests."""


def split(
    requests: Sequence[EditRequest], groups: Mapping[str, LabelGroup]
) -> dict[str, tuple[EditRequest, ...]]:
    """The requests of every benchmark and of AICE, each in the order of the run."""
    found: dict[str, list[EditRequest]] = {name: [] for name in (AICE, *BENCHMARKS)}
    for request in requests:
        takers = (name for name, one in BENCHMARKS.items() if one.takes(request, groups))
        found[next(takers, AICE)].append(request)
    return {name: tuple(part) for name, part in found.items()}


def evaluate_others(
    requests: Mapping[str, Sequence[EditRequest]],
    models: Models,
    config: EvaluationConfig,
    workdir: Path,
    *,
    progress: bool,
) -> dict[str, Any]:
    """The entries of `metrics.json` beside AICE's, of the benchmarks with requests."""
    return {
        name: one.evaluate(requests[name], models, config, workdir, progress=progress)
        for name, one in BENCHMARKS.items()
        if requests[name]
    }
