"""Operations of an edit's phases, and the law that seconds follow: for `studies.cost`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize

from emcid_jax.config import ModelConfig, Objective, StageOneConfig
from emcid_jax.planning import traced_programs
from emcid_jax.runtime import parallel, program_cost
from emcid_jax.sprites.bundled import BUNDLED, STAGE_ONE
from emcid_jax.tasks.plan import PlanConfig, open_abstract, stage_one_cost

MODELS = {
    BUNDLED: (dataclasses.replace(STAGE_ONE, steps=100), 5.0),
    "sd-1.4": (StageOneConfig(), 6.0),
}
"""Name -> Stage I's settings, mean tokens of a prompt up to its subject."""


class Fit(NamedTuple):
    """seconds = constant + rate * n ** exponent."""

    constant: float
    rate: float
    exponent: float

    def at(self, count: float) -> float:
        """The fitted value."""
        return self.constant + self.rate * count**self.exponent


def fit(counts: Sequence[float], values: Sequence[float]) -> Fit:
    """Least squares of relative errors, constant and rate not negative, exponent .25 to 3."""
    n, y = np.asarray(counts, float), np.asarray(values, float)
    best, least = Fit(0.0, 0.0, 1.0), np.inf
    for exponent in np.arange(25, 301) / 100:
        matrix = np.stack([np.ones_like(n), n**exponent], axis=1) / y[:, None]
        found, error = scipy.optimize.nnls(matrix, np.ones_like(n))
        if error < least - 1e-9:
            best, least = Fit(float(found[0]), float(found[1]), float(exponent)), error
    return best


class Sizes(NamedTuple):
    """What Stage II's operations depend on."""

    dim: int
    keys: int
    layers: int
    prompts: int
    tokens: float
    """Of a prompt up to its subject, mean."""


def stage_two_flops(sizes: Sizes, concepts: int) -> dict[str, float]:
    """Operations: `passes` through blocks, `solves` by layer, and `constant`, C's factors."""
    n, d, w = concepts, sizes.keys, sizes.dim
    block = (8 * w * w + 4 * w * d) * sizes.tokens
    onward = sizes.layers * (sizes.layers - 1) / 2  # Prompt 0 from every layer on to block L.
    passes = n * block * (sizes.prompts * sizes.layers + onward)
    if n < d:
        solve = 2 * d * d * n + 2 * n * n * d + n**3 / 3 + 2 * n * n * w + 2 * d * n * w + d * d * w
        return {
            "passes": passes, "solves": sizes.layers * solve,
            "constant": sizes.layers * d**3 / 3,
        }  # fmt: skip
    solve = 2 * n * d * d + d**3 / 3 + 2 * n * d * w + 2 * d * d * w
    return {"passes": passes, "solves": sizes.layers * solve, "constant": 0.0}


class Operations(NamedTuple):
    """Floating-point operations of one thing each, counted on the programs' jaxprs."""

    concept: float
    """Stage I of one concept, 100 steps, drawn images apart."""
    concept_text: float
    """The same without the noise loss."""
    concept_attention: float
    """The same by the attention loss."""
    image: float
    """One training image."""
    caption: float
    """One caption of full length in the second moments."""


def operations(model: str) -> tuple[Operations, Sizes]:
    """What a model's phases cost apiece, and what Stage II's cost depends on."""
    settings, tokens = MODELS[model]
    config = PlanConfig(model=ModelConfig(path=model), stage_one=settings)
    pipeline = open_abstract(config.model)
    mesh = parallel.make_mesh(jax.devices("cpu")[:1])

    def without_images(objective: Objective) -> float:
        own = dataclasses.replace(settings, objective=objective, teacher_pool=0)
        return stage_one_cost(pipeline, dataclasses.replace(config, stage_one=own))[0].flops

    layers = tuple(range(settings.layer + 1))
    image = traced_programs.trace_sampling(
        pipeline, 1, settings.image_steps, settings.image_guidance, mesh
    )
    moments = traced_programs.trace_moments(pipeline.encoder, layers, 16, mesh)
    about = pipeline.encoder.model.config
    return (
        Operations(
            stage_one_cost(pipeline, config)[0].flops,
            without_images("text-only"),
            without_images("attention"),
            program_cost.cost(image.jaxpr.jaxpr).flops,
            program_cost.cost(moments.jaxpr.jaxpr).flops / 16,
        ),
        Sizes(about.hidden_size, about.intermediate_size, len(layers), 3, tokens),
    )
