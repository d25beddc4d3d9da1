"""Presets of Stage I, and concept units, by AICE: `--config.base.requests.path=arbitrary_val.csv`.

The table of docs/presets.md.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.config.overrides import changes
from emcid_jax.config.presets import PRESETS
from emcid_jax.sprites.bundled import STAGE_ONE, UNITS_STAGE_ONE, UNITS_STAGE_TWO
from emcid_jax.tasks.ablate import AblateConfig


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv"),
        stage_one=STAGE_ONE,
        evaluation=settings.EvaluationConfig(
            steps=10, prompts_per_request=2, holdout=50, aliases=False, batch=32
        ),
        run=settings.RunConfig(cpu_devices=0),
    )
    rows = [dataclasses.replace(base, stage_one=make(STAGE_ONE)) for make in PRESETS.values()]
    rows += [dataclasses.replace(base, stage_one=UNITS_STAGE_ONE, stage_two=UNITS_STAGE_TWO)]
    variants = tuple(changes(base, row) for row in rows)
    return settings.to_config_dict(AblateConfig(base=base, counts=(100,), variants=variants))
