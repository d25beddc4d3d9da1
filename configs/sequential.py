"""The same requests in 1, 10 and 100 rounds: `--config.base.requests.path=<arbitrary_val.csv>`.

Memories by the text loss alone: every round that starts from edited weights needs new ones.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE
from emcid_jax.tasks.sequential import SequentialConfig


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv", count=100),
        stage_one=dataclasses.replace(STAGE_ONE, objective="text-only", steps=60),
        stage_two=settings.StageTwoConfig(preservation_weight=10_000.0),
        run=settings.RunConfig(cpu_devices=0),
    )
    return settings.to_config_dict(SequentialConfig(base=base))
