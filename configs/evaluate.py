"""EMCID beside other methods on 1 to 2,000 requests of mixed kind; see docs/comparison.md.

Memories of the linear rows by the text loss alone, ten sampler steps and five prompts per image set
keep it to two hours on two cores. Your own list: `--config.base.requests.path=FILE
--config.counts="(10,100)"`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.config.overrides import changes
from emcid_jax.sprites.bundled import STAGE_ONE, UNITS_STAGE_ONE, UNITS_STAGE_TWO
from emcid_jax.tasks.evaluate import EvaluateConfig

BASE = settings.EditConfig(
    requests=settings.RequestsConfig(path="sprites"),
    stage_one=dataclasses.replace(STAGE_ONE, objective="text-only", steps=60, image_steps=10),
    evaluation=settings.EvaluationConfig(
        steps=10, prompts_per_request=5, holdout=30, aliases=False
    ),
    run=settings.RunConfig(cpu_devices=0, save_every=250),
)
UNITS = dataclasses.replace(
    BASE,
    stage_one=dataclasses.replace(UNITS_STAGE_ONE, image_steps=10),
    stage_two=UNITS_STAGE_TWO,
)
ROWS = (
    "EMCID:",
    "EMCID, names protected: keep=True",
    "EMCID, null space: stage_two.solver=nullspace",
    f"EMCID, concept units: {changes(BASE, UNITS)}",
    "EMCID, lambda 40,000: stage_two.preservation_weight=40000.",
    "EMCID, released residual: stage_two.residual=released",
    "one layer (ReFACT-like): stage_two.layers=(10,) stage_two.preservation_weight=10.",
    "UCE, replace, names protected: method=uce uce.value=replace keep=True",
    "UCE, tensor: method=uce uce.value=tensor",
    "text encoder fine-tuned: method=fine-tune max_requests=100 fine_tune.passes=20",
    "ESD-x: method=fine-tune max_requests=100 fine_tune.part=cross_attention fine_tune.passes=10 "
    "stage_one.objective=esd",
)


def get_config() -> ConfigDict:
    counts = (1, 10, 100, 300, 1000, 2000)
    return settings.to_config_dict(
        EvaluateConfig(base=BASE, counts=counts, rows=ROWS, max_judged=60)
    )
