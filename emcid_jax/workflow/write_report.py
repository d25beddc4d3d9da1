"""What a run tells about its edit: metrics.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import memories as bank
from emcid_jax.evaluation.benchmarks.aice import Evaluation
from emcid_jax.evaluation.benchmarks.aice_protocol import as_json
from emcid_jax.reporting.pages.edit import ReportData, write_report
from emcid_jax.reporting.plots.theme import LayerBar
from emcid_jax.workflow.workdir import Log, read_json, write_json


def write_metrics(
    workdir: Path,
    requests: int,
    report: Mapping[str, Any],
    evaluation: Evaluation | None,
    others: Mapping[str, Any],
    log: Log,
) -> None:
    """metrics.json: the final figures and the seconds of every phase.

    Args:
        workdir: where to.
        requests: number of requests edited.
        report: Stage II's report as the ledger has it.
        evaluation: what AICE found, if it ran.
        others: entries of other benchmarks and of the debias search.
        log: gives the seconds.
    """
    metrics: dict[str, Any] = {"requests": requests, "stage_two": dict(report)}
    if evaluation is not None:
        metrics |= as_json(evaluation.result)
    metrics |= others
    write_json(workdir / "metrics.json", metrics | {"seconds": log.seconds()})


def write_page(
    workdir: Path,
    config: EditConfig,
    requests: int,
    memories: Sequence[bank.Provenance],
    report: Mapping[str, Any],
    evaluation: Evaluation | None,
    log: Log,
) -> None:
    """report.html, from what `workdir` holds; `memories` are the provenances of Stage I's."""
    found = (bank.read(workdir / "bank", memory) for memory in memories)
    curves = [memory.curve for memory in found if memory is not None]
    about = read_json(workdir / "config.json")
    layers = [
        LayerBar(layer["layer"], layer["asked"], layer["left"], layer["change"])
        for layer in report["layers"]
    ]
    data = ReportData(
        model=config.model.path,
        requests=requests,
        evaluation=evaluation,
        loss_curves=np.stack(curves) if curves else None,
        layers=layers,
        distance=(report["distance_before"], report["distance_after"]),
        seconds=log.seconds(),
        config=about["config"],
        versions=about["environment"],
    )
    write_report(workdir / "report.html", data)
