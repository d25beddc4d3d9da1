"""AICE: all 300 requests of the benchmark's file, given by `--config.requests.path=<the CSV>`.

Stage I's settings fit the bundled model (docs/decisions.md); for your own take `own_model.py`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(stage_one=STAGE_ONE, run=settings.RunConfig(cpu_devices=0))
    )
