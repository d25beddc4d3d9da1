"""Implicit assumptions of the bundled model, edited one at a time; docs/implicit.md.

TIMED or RoAD: `--config.base.requests.path=<csv> --config.base.model.path=<folder>
--config.clip=<folder of a CLIP model>`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import IMPLICIT, STAGE_ONE
from emcid_jax.tasks.implicit import ImplicitConfig


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(IMPLICIT)),
        stage_one=dataclasses.replace(STAGE_ONE, steps=60, image_steps=10),
        stage_two=settings.StageTwoConfig(preservation_weight=10_000.0),
        moments=settings.MomentConfig(count=4_000),
        evaluation=settings.EvaluationConfig(steps=10, batch=32),
        run=settings.RunConfig(cpu_devices=0),
    )
    return settings.to_config_dict(ImplicitConfig(base=base, seeds=2))
