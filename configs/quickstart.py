"""Edits 25 concepts of the bundled model and measures the result, in minutes on a laptop.

The requests are the first 25 of AICE (https://github.com/SilentView/EMCID, MIT licence, (c) 2024
T. Xiong), written as a manifest. It takes fewer steps and draws fewer images than `aice.py` does.
`--config=quickstart:balanced` takes another preset of Stage I (docs/presets.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE


def get_config(preset: str = "published") -> ConfigDict:
    requests = Path(__file__).resolve().parent / "quickstart.json"
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path=str(requests)),
            stage_one=settings.preset(
                preset, dataclasses.replace(STAGE_ONE, steps=60, image_steps=10)
            ),
            moments=settings.MomentConfig(count=3_000),
            evaluation=settings.EvaluationConfig(
                steps=10,
                prompts_per_request=2,
                holdout=25,
                aliases=False,
                batch=32,  # As many as Stage I draws at once on two cores: the same program.
            ),
            run=settings.RunConfig(cpu_devices=0),
        )
    )
