"""Stage II over a bank, and what it leaves: the edit's file and the edited text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emcid_jax.config import ExportDtype, StageTwoConfig
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.export import edit_file, text_encoder
from emcid_jax.editing.export import port as portability
from emcid_jax.editing.stage_two.solve import StageTwoReport
from emcid_jax.editing.units import separability
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.workflow.find_moments import Measured
from emcid_jax.workflow.workdir import Run


def write_edit(
    concepts: ConceptBank,
    pipeline: Pipeline,
    model: Mapping[str, str],
    moments: Mapping[str, Measured],
    config: StageTwoConfig,
    export_dtype: ExportDtype,
    run: Run,
    *,
    compare_blocks: bool = False,
) -> dict[str, StageTwoReport]:
    """Stage II and the exports; edit.safetensors appears last, when all is done.

    Args:
        concepts: what is written.
        pipeline: the base model.
        model: its hashes, see `memories.model_hashes`.
        moments: its second moments, by text encoder.
        config: Stage II's settings.
        export_dtype: stored type of the text encoders; `source` keeps every tensor's.
        run: its workdir gets a folder for each edited text encoder and `edit.safetensors`, its log
            a line per step.
        compare_blocks: whether the report of concept units says how well every block would tell
            the names apart.
    """
    with run.log.timed("stage_two") as figures:
        solved = bank_solve.solve(concepts, pipeline, moments, config)
        reports = {name: one.report for name, one in solved.items()}
        for name, report in reports.items():
            key = "distance" if name == FIRST else f"distance_{name}"
            figures[key] = [report.distance_before, report.distance_after]
    if compare_blocks:
        names = [concept.request.source for concept in concepts.active]
        reports = _compared(pipeline, names, moments, reports, run)
    with run.log.timed("export"):
        content = edit_file.pack_model(solved)
        # What is in the file is what is exported.
        edited = {
            name: portability.apply(pipeline, content, reports[name], name)
            for name in content.encoders
        }
        export(pipeline, edited, export_dtype, run.workdir)
        hashes = {name: params_hash(params) for name, params in edited.items()}
        ledger = edit_file.make_ledger(concepts, model, moments, config, reports, hashes)
        edit_file.write_edit(run.workdir / "edit.safetensors", content, ledger)
    return reports


def _compared(
    pipeline: Pipeline,
    names: Sequence[str],
    moments: Mapping[str, Measured],
    reports: Mapping[str, StageTwoReport],
    run: Run,
) -> dict[str, StageTwoReport]:
    """The reports, those of units with `separability`."""
    compared = dict(reports)
    for encoder in pipeline.encoders:
        measured, report = moments.get(encoder.name), reports.get(encoder.name)
        if isinstance(measured, UnitStatistics) and report is not None and report.units is not None:
            with run.log.timed("compare_blocks"):
                shares = separability.by_block(encoder, names, measured.pool)
            units = dataclasses.replace(report.units, separability=shares)
            compared[encoder.name] = dataclasses.replace(report, units=units)
    return compared


def export(
    pipeline: Pipeline,
    edited: Mapping[str, Mapping[str, Any]],
    dtype: ExportDtype,
    workdir: Path,
) -> None:
    """Writes the folder of every edited text encoder into `workdir`."""
    for name, params in edited.items():
        text_encoder.write_text_encoder(
            workdir / name, params, pipeline.folder / name, dtype, pipeline.variant, name
        )
