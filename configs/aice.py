"""AICE: all 300 requests of the benchmark's file, given by `--config.requests.path=<the CSV>`.

Stage I's settings fit the bundled model (docs/decisions.md); for a Stable Diffusion folder take the
published ones, `--config.stage_one.learning_rate=0.2 --config.stage_one.text_loss_scale=0.01`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(
            stage_one=settings.StageOneConfig(learning_rate=0.5, text_loss_scale=0.1)
        )
    )
