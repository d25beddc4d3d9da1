"""AICE: all 300 requests of the benchmark's file, given by `--config.requests.path=<the CSV>`."""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config() -> ConfigDict:
    return settings.to_config_dict(settings.EditConfig())
