"""AICE: all 300 requests of the benchmark's file, given by `--config.requests.path=<the CSV>`.

Stage I's settings fit the bundled model (docs/decisions.md); for your own take `own_model.py`.
`--config=aice:balanced` takes another preset of Stage I (docs/presets.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE


def get_config(preset: str = "published") -> ConfigDict:
    stage_one = settings.preset(preset, STAGE_ONE)
    return settings.to_config_dict(
        settings.EditConfig(stage_one=stage_one, run=settings.RunConfig(cpu_devices=0))
    )
