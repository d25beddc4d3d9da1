"""A concept bank's operations; say which by `--config.operation=... --config.bank=FOLDER`.

The settings of `add` and `solve` are the main job's defaults; give those your bank was made with.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.bank import BankConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(BankConfig())
