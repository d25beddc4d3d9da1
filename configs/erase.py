"""Erases ten artists of the bundled model towards "art", in minutes; see docs/erase.md.

For your own list: `--config.requests.path=artists.txt`, a JSON list of names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE


def get_config() -> ConfigDict:
    requests = Path(__file__).resolve().parent / "erase.json"
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path=str(requests)),
            stage_one=dataclasses.replace(STAGE_ONE, steps=60, image_steps=10),
            moments=settings.MomentConfig(count=5_000),
            evaluation=settings.EvaluationConfig(steps=10, prompts_per_request=3, holdout=40),
            run=settings.RunConfig(cpu_devices=0),
        )
    )
