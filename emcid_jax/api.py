"""The calls for Python: a pipeline, Stage I, second moments, Stage II, apply, export, sample.

Every call is a function of its arguments. Nothing is global but what is on disk, and a pipeline is
never changed: `apply` gives another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from emcid_jax.concepts.conflicts import require_consistent
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.config import (
    Dtype,
    ExportDtype,
    ModelConfig,
    RunConfig,
    StageOneConfig,
    StageTwoConfig,
)
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.export import text_encoder as exports
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines import pipeline as pipelines
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError as UserError
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.storage import ownership
from emcid_jax.workflow.find_memories import add_to_bank
from emcid_jax.workflow.inputs import require_model
from emcid_jax.workflow.workdir import Log, Run

STAGE_ONE, STAGE_TWO = StageOneConfig(), StageTwoConfig()
QUIET = RunConfig(progress=False)


def load_pipeline(model: str = "sprites", dtype: Dtype = "float32", variant: str = "") -> Pipeline:
    """A model by what `config.model.path` takes: `sprites`, or a Stable Diffusion folder.

    `variant` names its weight files, as `config.model.variant` does. UserError if there is no such
    model or it is not supported.
    """
    folder = require_model(ModelConfig(path=model, variant=variant))
    return pipelines.load_pipeline(folder, jnp.dtype(dtype), variant)


def run_stage_one(
    pipeline: Pipeline,
    requests: Sequence[EditRequest | tuple[str, str]],
    folder: Path | str,
    config: StageOneConfig = STAGE_ONE,
    run: RunConfig = QUIET,
) -> ConceptBank:
    """Adds requests to the bank in `folder` and gives the bank; Stage I runs for new ones only.

    Args:
        pipeline: the base model.
        requests: requests, or pairs (source, destination) with the templates of objects.
        folder: the bank's folder; made if there is none. Progress is logged in its metrics.jsonl.
        config: Stage I's settings.
        run: chunk size and progress bars.

    Raises:
        UserError: requests that contradict each other, the bank, or do not fit the tokenizer; a
            folder that is a model's, or has a metrics.jsonl of somebody else's.
    """
    folder = Path(folder)
    asked = [
        request
        if isinstance(request, EditRequest)
        else EditRequest(*request, OBJECT_TEMPLATES, origin=f"request {index}")
        for index, request in enumerate(requests)
    ]
    require_consistent(asked)
    log = Log(folder / "metrics.jsonl")
    concept_bank.require_usable(folder)
    ownership.require_free(folder, (log.path.name,), f"the bank is {str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    add_to_bank(pipeline, asked, folder, config, Run(run, folder, log, make_mesh()))
    return concept_bank.open_bank(folder)


def second_moments(
    pipeline: Pipeline, captions: Sequence[str], config: StageTwoConfig = STAGE_TWO
) -> dict[str, SecondMoments]:
    """Second moments of the keys over captions, for the layers of `config`; by text encoder."""
    found = {}
    for encoder in pipeline.encoders:
        ids = tokenize(encoder.tokenizer, captions)
        layers = config.of(encoder.name).layers
        steps = second_moment.accumulate(encoder.model, encoder.params, ids, layers)
        found[encoder.name] = second_moment.finish(deque(steps, maxlen=1).pop())
    return found


def solve(
    bank: ConceptBank,
    pipeline: Pipeline,
    moments: Mapping[str, SecondMoments],
    config: StageTwoConfig = STAGE_TWO,
) -> dict[str, WeightEdit]:
    """Stage II over the whole bank, from pristine weights, by text encoder; see `bank.solve`."""
    return bank_solve.solve(bank, pipeline, moments, config)


def apply(pipeline: Pipeline, edit: Mapping[str, WeightEdit]) -> Pipeline:
    """The pipeline with the edit in its text encoders; `pipeline` stays as it is."""
    return stage_two.with_edit(pipeline, edit)


def export(
    edited: Pipeline,
    folder: Path | str,
    dtype: ExportDtype = "source",
    encoder: str = "text_encoder",
) -> None:
    """Writes a text encoder as the drop-in `text_encoder` (or `text_encoder_2`) folder of a
    diffusers model; `encoder` says which.

    An earlier one is replaced. UserError, with nothing changed, if anything in `folder` was not
    written by this program, or `folder` lies in a model's.
    """
    exports.write_text_encoder(
        Path(folder), edited.params[encoder], edited.folder / encoder, dtype,
        edited.variant, encoder,
    )  # fmt: skip


def sample(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] | None = None,
    steps: int = 20,
    guidance: float = 4.0,
) -> UInt8[np.ndarray, "image height width 3"]:
    """Draws one image per prompt, the i-th with seed i unless `seeds` says others."""
    chosen = list(range(len(prompts))) if seeds is None else seeds
    return generate(pipeline, prompts, chosen, steps=steps, guidance=guidance, mesh=make_mesh())
