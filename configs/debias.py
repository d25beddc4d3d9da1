"""Gives 37 professions of the bundled model equal shares of women and men; see docs/debias.md.

Other shares, other values: your own manifest, `--config.requests.path=requests.json`.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config() -> ConfigDict:
    requests = Path(__file__).resolve().parent / "debias.json"
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path=str(requests)),
            # Two memories per profession: without images they take seconds.
            stage_one=settings.StageOneConfig(
                objective="text-only", steps=60, learning_rate=0.5, text_loss_scale=0.1
            ),
            moments=settings.MomentConfig(count=5_000),
            debias=settings.DebiasConfig(
                images=24, tolerance=0.125, rounds=0, refinements=2, steps=10
            ),
            evaluation=settings.EvaluationConfig(
                steps=10, holdout=25, debias_seeds=3, debias_images=1
            ),
        )
    )
