"""Requests on the bundled model, and the loss that all memories of them are judged by.

It is the held-out loss of the published objective: the same pictures, noise and timesteps for all
memories, which no step sees.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import RequestsConfig, StageOneConfig
from emcid_jax.editing.stage_one import adam_loop
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.loss import Losses, StageOneInputs
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, STAGE_ONE, model_folder
from emcid_jax.workflow import find_memories
from emcid_jax.workflow.inputs import read_requests


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a study of Stage I works on."""

    pipeline: Pipeline
    requests: Sequence[EditRequest]
    mesh: Mesh
    """One device."""
    prepare: Callable[[StageOneConfig], StageOneInputs]
    """What Stage I reads of all requests."""

    @functools.cached_property
    def _judge(self) -> Callable[[stage_one.Params, Array], Losses]:
        fixed = jax.tree.map(jnp.asarray, self.prepare(STAGE_ONE))

        @jax.jit
        def judge(params: stage_one.Params, delta: Array) -> Losses:
            return adam_loop.held_out_loss(self.pipeline, params, fixed, delta, STAGE_ONE)

        return judge

    def losses(self, delta: Float[Array | np.ndarray, "concept size"]) -> Losses:
        """The held-out losses of offsets, as NumPy arrays."""
        params = stage_one.model_params(self.pipeline, STAGE_ONE)
        return jax.tree.map(np.asarray, self._judge(params, jnp.asarray(delta)))


def open_setting(count: int, skip: int) -> Setting:
    """`count` requests, spread over the mixed list without its first `skip`."""
    pipeline = load_pipeline(model_folder(BUNDLED))
    mesh = parallel.make_mesh(jax.devices()[:1])
    requests = evenly(read_requests(RequestsConfig(path="sprites"))[skip:], count)
    prompts = find_memories.read_prompts(pipeline, requests, STAGE_ONE)

    def prepare(config: StageOneConfig) -> StageOneInputs:
        read = find_memories.read_for(pipeline, prompts, config)
        rows = slice(0, len(requests))
        return find_memories.prepare_chunk(pipeline, requests, read, rows, config, mesh)

    return Setting(pipeline, requests, mesh, prepare)
