"""What an edit needs and takes: `--config.target=v5e:2x4`, see docs/scaling.md."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.plan import PlanConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(PlanConfig())
