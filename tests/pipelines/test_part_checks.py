"""Parts whose sizes are those of a published model that predicts something else: a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNetConfig
from emcid_jax.models.image.vae import VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.part_checks import require_fitting
from emcid_jax.pipelines.published_configs import default_configs


@pytest.mark.parametrize(
    ("version", "size", "predicts", "warned"),
    [
        (2, 96, "epsilon", True),
        (2, 96, "v_prediction", False),
        (2, 64, "epsilon", False),
        (1, 96, "epsilon", False),
    ],
)
def test_the_size_of_stable_diffusion_2_and_what_it_predicts(
    version: int, size: int, predicts: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    configs = default_configs(version, predicts)
    require_fitting(
        SD,
        {"text_encoder": ClipTextConfig.from_dict(configs["text_encoder"])},
        UNetConfig.from_dict({**configs["unet"], "sample_size": size}),
        VaeConfig.from_dict(configs["vae"]),
        NoiseSchedule.from_dict(configs["scheduler"]),
        {part: Path(part) / name for part, name in SD.config_files.items()},
    )
    said = "scheduler_config.json: prediction_type is epsilon, but unet/config.json: sample_size"
    assert (said in caplog.text) is warned
