"""The released code's settings for SDXL, as far as they can be said here; see docs/sdxl.md.

For a model and requests of yours: `--config.model.path=<folder or file>
--config.requests.path=<file>`. They were never measured, for the released code stops before its
first edit of an SDXL.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings


def get_config() -> ConfigDict:
    return settings.to_config_dict(
        settings.EditConfig(
            requests=settings.RequestsConfig(path="requests.csv"),
            model=settings.ModelConfig(path="stabilityai/stable-diffusion-xl-base-1.0"),
            stage_one=settings.StageOneConfig(
                layer=10,
                second_layer=30,
                steps=100,
                learning_rate=0.1,
                clamp_norm_factor=1.2,
                weight_decay=8e-3,
                text_loss_scale=0.005,
                image_source="source",
                image_steps=50,
                image_guidance=7.5,
            ),
            moments=settings.MomentConfig(captions="captions.txt", count=100_000),
            stage_two=settings.StageTwoConfig(
                layers=(8, 9, 10),
                second_layers=tuple(range(26, 31)),
                preservation_weight=4000.0,
                second_preservation_weight=10_000.0,
                residual="released",
            ),
            evaluation=settings.EvaluationConfig(enabled=False),
        )
    )
