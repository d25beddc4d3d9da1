"""General quality of an edit: `--config.edited=<workdir>`; docs/evaluation.md.

Real models: `--config.quality.captions=coco_30k.csv --config.quality.count=0` and folders of CLIP,
InceptionV3 and the real pictures.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.quality import QualityTaskConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(QualityTaskConfig(edited="runs/quickstart"))
