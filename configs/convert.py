"""Writes a model as an Orbax checkpoint folder (`--workdir`) that starts faster.

python -m emcid_jax.main --config=configs/convert.py --config.model.path=MODEL --workdir=NEW
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.convert import ConvertConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(ConvertConfig())
