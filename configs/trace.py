"""Causal tracing of the bundled model's text encoder, 100 objects' names; see docs/tracing.md.

For another model: `--config.model.path=FOLDER --config.names_path=FILE`, a name a line.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.trace import TraceConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        TraceConfig(names_path="sprites", run=settings.RunConfig(cpu_devices=0))
    )
