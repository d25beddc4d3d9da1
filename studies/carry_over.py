"""`python -m studies.carry_over --model sprites-xl --workdir W`: do settings carry over to SDXL?

The same variations of lambda, blocks and units on the bundled model of either shape, at 100
requests of the mixed list; `W` gets what the task `evaluate` writes. The last lines printed are the
leverage of the requests' keys in each encoder, which lambda is measured by. Resumes in `W`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.config.overrides import changes
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, BUNDLED_XL, STAGE_ONE, UNITS_STAGE_ONE
from emcid_jax.tasks import evaluate
from emcid_jax.tasks.evaluate import EvaluateConfig
from emcid_jax.workflow import edit_job, environment
from emcid_jax.workflow.find_moments import moments_of
from emcid_jax.workflow.workdir import running
from studies.architectures import leverage

COUNT = 100
LAST: Mapping[str, tuple[int, ...]] = {BUNDLED: (10,), BUNDLED_XL: (7, 8)}
"""Model -> block L of every text encoder, as its configs have it. 10 is the last that is read of
the first model, 8 and 9 those of the second."""
OTHERS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    BUNDLED: ((6,),),
    BUNDLED_XL: ((8, 9), (4, 5)),
}
"""Other blocks L."""
LAMBDAS = (4_000, 400, 40_000)
"""The first is the default."""
BY_TEXT = dataclasses.replace(STAGE_ONE, objective="text-only", steps=60, image_steps=10)
UNITS = changes(
    EditConfig(stage_one=BY_TEXT),
    EditConfig(
        stage_one=dataclasses.replace(
            UNITS_STAGE_ONE, layer=BY_TEXT.layer, objective="text-only", image_steps=10
        ),
        stage_two=settings.StageTwoConfig(solver="units"),
    ),
)
"""What concept units need beside their block, memories by the text loss as all others here."""
UNIT_BLOCKS = (3, 0)


def written(last: Sequence[int], depth: int = 0) -> str:
    """Overrides: memories at the blocks `last`, written into the `depth` last ones; 0: all."""
    found = []
    for prefix, block in zip(("", "second_"), last, strict=False):
        blocks = tuple(range(block + 1))[-depth:]
        layers = repr(blocks).replace(" ", "")
        found += [f"stage_one.{prefix}layer={block}", f"stage_two.{prefix}layers={layers}"]
    return " ".join(found)


def rows(model: str) -> tuple[str, ...]:
    """The variations of a model, as rows of the task `evaluate`."""
    last = LAST[model]
    return (
        *(f"lambda {one:,}: stage_two.preservation_weight={one}." for one in LAMBDAS),
        *(
            f"units in block {block}: {written((block,) * len(last), 1)} {UNITS}"
            for block in UNIT_BLOCKS
        ),
        f"last four blocks: {written(last, 4)}",
        *(f"L {' and '.join(map(str, one))}: {written(one)}" for one in OTHERS[model]),
        f"block L alone: {written(last, 1)}",
    )


def config_of(model: str) -> EvaluateConfig:
    """All rows of a model; judged as in `configs/evaluate.py`, by one prompt per image set."""
    blocks = {"layer": LAST[model][0], "second_layer": LAST[model][-1]}
    layers, second = (tuple(range(block + 1)) for block in blocks.values())
    base = EditConfig(
        requests=settings.RequestsConfig(path="sprites"),
        model=settings.ModelConfig(path=model),
        stage_one=dataclasses.replace(BY_TEXT, **blocks),
        stage_two=settings.StageTwoConfig(layers=layers, second_layers=second),
        evaluation=settings.EvaluationConfig(
            steps=10, prompts_per_request=1, holdout=30, aliases=False
        ),
        run=settings.RunConfig(cpu_devices=0, save_every=COUNT),
    )
    return EvaluateConfig(base=base, counts=(COUNT,), rows=rows(model), max_judged=60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all rows, then prints the leverage."""
    options = _parse(arguments)
    parallel.use_cpu_devices(0)
    config = config_of(options.model)
    environment.use_compile_cache()
    evaluate.run(config, options.workdir)
    job, _ = evaluate.prepare(config)
    with running(config.base.run, options.workdir, evaluate.WRITES) as run:
        found = edit_job.find_moments_of(job, run)
    own = {site.encoder: config.base.stage_two.of(site.encoder).layers for site in job.sites}
    for encoder in job.pipeline.encoders:
        moments, layers = moments_of(found[encoder.name]), own[encoder.name]
        print(encoder.name, f"{leverage(encoder, job.requests, moments, layers):,.0f}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.carry_over", description=__doc__)
    parser.add_argument("--model", choices=tuple(LAST), required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="what `evaluate` writes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
