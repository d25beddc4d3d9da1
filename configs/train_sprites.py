"""Trains the bundled sprite model from nothing: about two hours on 2 CPU cores, then measure it."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.train_sprites import TrainConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(TrainConfig())
