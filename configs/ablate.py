"""The table that decides the defaults: `--config.base.requests.path=<arbitrary_val.csv>`.

Every image set keeps one prompt per request, so that the whole table takes an hour on 2 cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.ablate import AblateConfig

VARIANTS = (
    "",
    "stage_two.preservation_weight=1000.",
    "stage_two.preservation_weight=20000.",
    "stage_two.residual=released",
    "stage_two.layers=(7,8,9,10)",
    "stage_two.layers=(10,)",
    "stage_one.image_source=source",
    "stage_one.objective=text-only",
    "stage_one.text_loss_scale=0.1",
)


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv"),
        stage_one=settings.StageOneConfig(steps=60, image_steps=10, learning_rate=0.5),
        stage_two=settings.StageTwoConfig(preservation_weight=10_000.0),
        evaluation=settings.EvaluationConfig(
            steps=10, prompts_per_request=1, holdout=50, aliases=False
        ),
    )
    return settings.to_config_dict(AblateConfig(base=base, variants=VARIANTS))
