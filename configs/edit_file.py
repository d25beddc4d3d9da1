"""An edit file's operations; say which by `--config.operation=... --config.edit=FILE`."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.edit_file import EditFileConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(EditFileConfig())
