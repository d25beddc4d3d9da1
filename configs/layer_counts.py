"""How many layers to edit, and up to which: `--config.base.requests.path=<arbitrary_val.csv>`.

Every row is one last layer, one number of layers and one number of concepts. Rows with the same
last layer share their memories, and all rows share one set of second moments. The task resumes, so
more layers or concepts can be added later. With `--config.run.distributed=True` on several hosts
each measures a share of the rows.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from emcid_jax import config as settings
from emcid_jax.tasks.ablate import AblateConfig

LAST_LAYERS = (4, 7, 10)
LAYERS = (1, 2, 4, 8)


def _variant(last: int, count: int) -> str:
    layers = range(last - count + 1, last + 1)
    return f"stage_one.layer={last} stage_two.layers=({''.join(f'{layer},' for layer in layers)})"


def get_config() -> ConfigDict:
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path="arbitrary_val.csv"),
        stage_one=settings.StageOneConfig(steps=60, image_steps=10, learning_rate=0.5),
        stage_two=settings.StageTwoConfig(preservation_weight=10_000.0),
        evaluation=settings.EvaluationConfig(
            steps=10, prompts_per_request=1, holdout=50, aliases=False
        ),
    )
    variants = [_variant(last, n) for last in LAST_LAYERS for n in LAYERS if n <= last + 1]
    return settings.to_config_dict(AblateConfig(base=base, variants=tuple(variants)))
