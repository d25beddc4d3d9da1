"""Which encoder of the bundled SDXL-shaped model to edit, and how; see docs/sdxl_measured.md.

The requests and the judge of `evaluate.py`, with one prompt per image set. Ridge has memories by
the text loss alone, units by the attention loss, but for the rows that say otherwise. The rows
"noise loss" stop at 30 requests, for each memory runs the UNet; units in one encoder stop at 100,
for their memories serve no other row.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.config.overrides import changes
from emcid_jax.sprites.bundled import BUNDLED_XL, STAGE_ONE, UNITS_STAGE_ONE, UNITS_STAGE_TWO
from emcid_jax.tasks.evaluate import EvaluateConfig

BASE = settings.EditConfig(
    requests=settings.RequestsConfig(path="sprites"),
    model=settings.ModelConfig(path=BUNDLED_XL),
    stage_one=dataclasses.replace(
        STAGE_ONE, objective="text-only", layer=7, second_layer=8, steps=60, image_steps=10
    ),
    stage_two=settings.StageTwoConfig(layers=tuple(range(8)), second_layers=tuple(range(9))),
    evaluation=settings.EvaluationConfig(
        steps=10, prompts_per_request=1, holdout=30, aliases=False
    ),
    run=settings.RunConfig(cpu_devices=0, save_every=100),
)
IN_UNITS = dataclasses.replace(
    BASE,
    stage_one=dataclasses.replace(UNITS_STAGE_ONE, second_layer=0, image_steps=10),
    stage_two=dataclasses.replace(UNITS_STAGE_TWO, second_layers=(0,)),
)
UNITS = changes(BASE, IN_UNITS)
BY_TEXT, FEW = "stage_one.objective=text-only", "max_requests=100"
FIRST, SECOND = "stage_one.encoders=text_encoder", "stage_one.encoders=text_encoder_2"
NOISE, ALONE = "stage_one.objective=ablate-dest max_requests=30", "stage_one.pooled_text_loss=False"
ROWS = (
    "ridge, both:",
    f"units, both: {UNITS}",
    f"ridge, first: {FIRST}",
    f"units, first: {UNITS} {FIRST} {FEW}",
    f"ridge, second: {SECOND}",
    f"units, second: {UNITS} {SECOND} {FEW}",
    f"units by the text loss, both: {UNITS} {BY_TEXT}",
    f"noise loss, both: {NOISE}",
    f"noise loss, both, pooled text left out: {NOISE} {ALONE}",
    f"noise loss, first: {NOISE} {FIRST}",
    f"noise loss, second: {NOISE} {SECOND}",
)


def get_config() -> ConfigDict:
    counts = (10, 30, 100, 300, 1000)
    return settings.to_config_dict(
        EvaluateConfig(base=BASE, counts=counts, rows=ROWS, max_judged=60)
    )
