"""Gives 37 professions of the bundled model equal shares of women and men; see docs/debias.md.

Other shares, other values: your own manifest, `--config.requests.path=requests.json`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import STAGE_ONE


def get_config() -> ConfigDict:
    requests = Path(__file__).resolve().parent / "debias.json"
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path=str(requests)),
            # Two memories per profession: without images they take seconds.
            stage_one=dataclasses.replace(STAGE_ONE, objective="text-only", steps=60),
            moments=settings.MomentConfig(count=5_000),
            debias=settings.DebiasConfig(
                images=24, tolerance=0.125, rounds=0, refinements=2, steps=10
            ),
            evaluation=settings.EvaluationConfig(
                steps=10, holdout=25, debias_seeds=3, debias_images=1
            ),
            run=settings.RunConfig(cpu_devices=0),
        )
    )
