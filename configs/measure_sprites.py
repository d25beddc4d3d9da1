"""Scores the bundled sprite model; `--config.sentences=<imgnet_prompts.json>` adds free text."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.measure_sprites import MeasureConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(MeasureConfig())
