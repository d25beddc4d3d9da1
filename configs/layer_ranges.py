"""All 66 ranges of edited layers in text space: `--config.base.requests.path=<arbitrary_val.csv>`.

Memories by the text loss alone, new for every last layer; see docs/tracing.md.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE
from emcid_jax.tasks.layer_ranges import LayerRangesConfig


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv", count=25),
        stage_one=dataclasses.replace(STAGE_ONE, objective="text-only", steps=60, text_tokens=16),
        moments=settings.MomentConfig(count=5_000),
        run=settings.RunConfig(cpu_devices=0, save_every=25),
    )
    return settings.to_config_dict(
        LayerRangesConfig(base=base, keep_path="sprites", keep_count=200)
    )
