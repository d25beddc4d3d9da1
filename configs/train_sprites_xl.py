"""Makes the bundled model of SDXL's shape out of the first sprite model; then measure it."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.train_sprites_xl import TrainXlConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(TrainXlConfig())
