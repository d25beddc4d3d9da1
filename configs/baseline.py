"""EMCID beside its baselines: `--config.base.requests.path=<arbitrary_val.csv>`; docs/baselines.md.

One prompt per request and image set, ten sampler steps and 25 hold-out classes keep it cheap.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE
from emcid_jax.tasks.baseline import BaselineConfig

ROWS = (
    "EMCID:",
    "UCE, tensor: method=uce uce.value=tensor",
    "UCE, replace, 1,000 names kept: method=uce uce.value=replace uce.preserve_path=sprites",
    "EMCID, released residual: stage_two.residual=released",
    "one layer (ReFACT-like): stage_one.objective=text-only stage_one.layer=9 "
    "stage_two.layers=(9,) stage_two.moment_weight=10.",
    "text encoder fine-tuned: method=fine-tune fine_tune.learning_rate=1e-4",
    "ESD-x: method=fine-tune fine_tune.part=cross_attention fine_tune.learning_rate=1e-4 "
    "stage_one.objective=esd",
    "text encoder fine-tuned, text loss only: method=fine-tune stage_one.objective=text-only "
    "fine_tune.learning_rate=1e-4",
    "UCE, replace: method=uce uce.value=replace",
    "UCE, tensor, 1,000 names kept: method=uce uce.value=tensor uce.preserve_path=sprites",
    "EMCID with ESD's objective: stage_one.objective=esd",
)


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv"),
        stage_one=dataclasses.replace(STAGE_ONE, steps=60, image_steps=10),
        stage_two=settings.StageTwoConfig(moment_weight=10_000.0),
        evaluation=settings.EvaluationConfig(steps=10, prompts_per_request=1, holdout=25),
        run=settings.RunConfig(cpu_devices=0),
    )
    return settings.to_config_dict(BaselineConfig(base=base, rows=ROWS))
