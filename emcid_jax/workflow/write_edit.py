"""Stage II over a bank, and what it leaves: the edit's file and the edited text encoder."""

from __future__ import annotations

from collections.abc import Mapping

from emcid_jax.config import ExportDtype, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.export import edit_file, text_encoder
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.workflow.find_moments import Measured
from emcid_jax.workflow.workdir import Run


def write_edit(
    concepts: ConceptBank,
    pipeline: Pipeline,
    model: Mapping[str, str],
    moments: Measured,
    config: StageTwoConfig,
    export_dtype: ExportDtype,
    run: Run,
) -> StageTwoReport:
    """Stage II and the exports; edit.safetensors appears last, when all is done.

    Args:
        concepts: what is written.
        pipeline: the base model.
        model: its hashes, see `memories.model_hashes`.
        moments: its second moments.
        config: Stage II's settings.
        export_dtype: stored type of the text encoder; `source` keeps every tensor's.
        run: its workdir gets `text_encoder/` and `edit.safetensors`, its log a line per step.
    """
    with run.log.timed("stage_two") as figures:
        solved = concept_bank.solve(concepts, pipeline, moments, config)
        report = solved.report
        figures["distance"] = [report.distance_before, report.distance_after]
    with run.log.timed("export"):
        content = edit_file.pack(solved.deltas, solved.units)
        # What is in the file is what is exported.
        stored = WeightEdit(content.deltas(), report, content.units())
        edited = stage_two.apply_edit(pipeline.params["text_encoder"], stored)
        text_encoder.write_text_encoder(
            run.workdir / "text_encoder",
            edited,
            pipeline.folder / "text_encoder",
            export_dtype,
            pipeline.variant,
        )
        ledger = edit_file.make_ledger(
            concepts, model, moments, config, report, params_hash(edited)
        )
        edit_file.write_edit(run.workdir / "edit.safetensors", content, ledger)
    return report
