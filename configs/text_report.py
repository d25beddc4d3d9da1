"""A report in text space on a bank, `--config.bank=FOLDER`; no image is drawn.

The names to keep are those of the bundled model; for another one give `--config.keep_path=FILE`.
Other settings are the main job's defaults; give those your bank was made with.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.text_report import TextReportConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        TextReportConfig(keep_path="sprites", run=settings.RunConfig(cpu_devices=0))
    )
