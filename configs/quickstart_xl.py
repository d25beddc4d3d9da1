"""Edits 25 concepts of the bundled model of SDXL's shape, in both text encoders at once.

The requests are those of `quickstart.py`. Of each encoder the denoiser reads the output of the last
block but one, so the edited blocks end one below: what stands behind the name then changes too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import BUNDLED_XL, STAGE_ONE


def get_config() -> ConfigDict:
    requests = Path(__file__).resolve().parent / "quickstart.json"
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path=str(requests)),
            model=settings.ModelConfig(path=BUNDLED_XL),
            stage_one=dataclasses.replace(
                STAGE_ONE, layer=7, second_layer=8, steps=60, image_steps=10
            ),
            moments=settings.MomentConfig(count=3_000),
            stage_two=settings.StageTwoConfig(
                layers=tuple(range(8)), second_layers=tuple(range(9))
            ),
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
