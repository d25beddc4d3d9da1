"""What an edit needs and takes: `--config.target=v5e:2x4`, see docs/scaling.md.

`--config=plan:balanced` plans another preset of Stage I (docs/presets.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.plan import PlanConfig


def get_config(preset: str = "published") -> ConfigDict:
    stage_one = settings.preset(preset, settings.StageOneConfig())
    return settings.to_config_dict(PlanConfig(stage_one=stage_one))
