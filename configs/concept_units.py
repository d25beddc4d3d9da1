"""Edits the bundled model with concept units: for long lists; see docs/concept_units.md.

100 requests of mixed kind, as many captions as the gates need, no images drawn in Stage I.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.sprites.bundled import UNITS_STAGE_ONE, UNITS_STAGE_TWO


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path="sprites", count=100),
            stage_one=UNITS_STAGE_ONE,
            stage_two=UNITS_STAGE_TWO,
            evaluation=settings.EvaluationConfig(
                steps=10, prompts_per_request=1, holdout=30, aliases=False
            ),
            run=settings.RunConfig(cpu_devices=0),
        )
    )
