"""Edits your own Stable Diffusion 1, 2 or XL, with the published settings of both stages.

Give what only you know: `--config.model.path=<folder, file or Hub id>
--config.requests.path=<list> --config.moments.captions=<sentences, one a line>`. The captions stand
for everything else that the model is asked for. Nothing is scored, for a judge of your pictures is
yours too (docs/evaluation.md). The other configs have Stage I's settings for the bundled model.
`--config=own_model:balanced` takes another preset of Stage I (docs/presets.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config(preset: str = "published") -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path="requests.csv"),
            model=settings.ModelConfig(path=""),
            stage_one=settings.preset(preset, settings.StageOneConfig()),
            moments=settings.MomentConfig(captions="captions.txt"),
            evaluation=settings.EvaluationConfig(enabled=False),
        )
    )
