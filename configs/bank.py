"""A concept bank's operations; say which by `--config.operation=... --config.bank=FOLDER`.

The settings of `add` and `solve` are those of `configs/aice.py`, so a bank made by it can be added
to; for another bank give those it was made with. For a Stable Diffusion folder take the published
ones: `--config.stage_one.learning_rate=0.2 --config.stage_one.text_loss_scale=0.01
--config.stage_one.text_tokens=0 --config.stage_one.teacher_pool=0`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE
from emcid_jax.tasks.bank import BankConfig


def get_config() -> ConfigDict:
    return settings.to_config_dict(BankConfig(stage_one=STAGE_ONE))
