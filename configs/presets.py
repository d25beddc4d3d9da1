"""Presets of Stage I, and concept units, by AICE: `--config.base.requests.path=arbitrary_val.csv`.

The table of docs/presets.md.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.config.presets import PRESETS
from emcid_jax.sprites.bundled import STAGE_ONE, UNITS_STAGE_ONE
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
    presets = [_changes(preset(STAGE_ONE)) for preset in PRESETS.values()]
    units = f"{_changes(UNITS_STAGE_ONE)} stage_two.layers=(0,) stage_two.solver=units"
    variants = (*presets, units)
    return settings.to_config_dict(AblateConfig(base=base, counts=(100,), variants=variants))


def _changes(stage_one: settings.StageOneConfig) -> str:
    """How it differs from the bundled model's settings, as a variant says it."""
    before, after = dataclasses.asdict(STAGE_ONE), dataclasses.asdict(stage_one)
    return " ".join(
        f"stage_one.{name}={value}" for name, value in after.items() if value != before[name]
    )
