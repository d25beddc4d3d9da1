"""Draws prompts: `--config.sampling.prompts="('a photo of a tench',)"`, see docs/sampling.md."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.sample import SampleConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(SampleConfig())
