"""What Stage II leaves alone beyond the captions: named concepts, and the empty prompt.

Kept concepts enter through their keys: every token of their prompts, through the pristine
encoder. Pristine keys are the right ones for every layer: were the protection perfect, a kept
prompt would reach each layer with its pristine states, so these keys are what a layer sees where
the protection works, and how far they are off where it does not is of the order of the drift
itself. They depend on no edit, hence come from one pass over all layers.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float64

from emcid_jax.concepts.names import normalised, stripped
from emcid_jax.concepts.readers.texts import read_names
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Protection:
    """Layer by layer, what its weight change should not touch."""

    kept: Mapping[int, Float64[np.ndarray, "key key"]]
    """Layer -> weighted sum of k k^T over the protected concepts; no layer if there are none."""
    held: Mapping[int, Float[np.ndarray, "token key"]]
    """Layer -> keys of the empty prompt, start token first: held exactly by `nullspace`."""

    def moment(self, layer: int, moment: Moment, strength: float) -> Moment:
        """A layer's second moment with the protected concepts' keys in it.

        The requests not to change them, `sum_p v |dW p|^2`, are `strength tr(dW C' dW^T)` with
        `C' = v/strength sum_p p p^T`: a term of the second moment.
        """
        if layer not in self.kept:
            return moment
        return Moment(moment.matrix + self.kept[layer] / strength)


def resolved(config: StageTwoConfig) -> StageTwoConfig:
    """`config` with every protected name in `preserve`, those of its file included, each once.

    Raises:
        UserError: settings that do not go together, or a file that cannot be read.
    """
    config.check()
    names = [*map(stripped, config.preserve)]
    if "" in names:
        raise UserError("config.stage_two.preserve holds a name of invisible characters; remove it")
    if config.preserve_path:
        names += read_names(config.preserve_path, "config.stage_two.preserve_path")
        if not names:
            raise UserError(
                f"config.stage_two.preserve_path: {config.preserve_path} holds no name; "
                "write one a line"
            )
    distinct = {normalised(name): name for name in reversed(names)}
    return dataclasses.replace(
        config, preserve=tuple(distinct[key] for key in sorted(distinct)), preserve_path=""
    )


def protect(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    config: StageTwoConfig,
    mesh: Mesh | None = None,
) -> Protection | None:
    """What `config` protects while `requests` are written; None where it protects nothing.

    A protected concept's prompts are its name in `config.preserve_templates`, or else in all
    templates of the requests. Its share of the sum is `protected_weight` times the mean over its
    prompts of the sum over their tokens, start and first end token included. Concepts that are
    edited cannot be protected: they are left out, with a warning.

    Raises:
        UserError: what `resolved` raises.
    """
    if config.solver == "ridge":
        config.check()
        return None
    config = resolved(config)
    edited = {normalised(request.source) for request in requests}
    both = [name for name in config.preserve if normalised(name) in edited]
    if both:
        logging.warning(
            "%d of %d protected concepts are edited and so not protected, the first is %r",
            len(both),
            len(config.preserve),
            both[0],
        )
    names = [name for name in config.preserve if normalised(name) not in edited]
    templates = config.preserve_templates or tuple(
        sorted({template for request in requests for template in request.templates})
    )
    return Protection(
        _kept(encoder, names, templates, config, mesh) if names else {},
        _held(encoder, config.layers),
    )


def _kept(
    encoder: TextEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    config: StageTwoConfig,
    mesh: Mesh | None,
) -> dict[int, Float64[np.ndarray, "key key"]]:
    """The second moments of the concepts' prompts, not divided by the number of tokens."""
    prompts = [fill(template, name).prompt for name in names for template in templates]
    steps = second_moment.accumulate(
        encoder.model,
        encoder.params,
        tokenize(encoder.tokenizer, prompts),
        config.layers,
        mesh=mesh,
    )
    sums = collections.deque(steps, maxlen=1).pop().sums
    scale = config.protected_weight / len(templates)
    return {layer: scale * total for layer, total in sums.items()}


def _held(encoder: TextEncoder, layers: Sequence[int]) -> dict[int, Float[np.ndarray, "token key"]]:
    """Keys of the empty prompt as the UNet sees it: padding included."""
    params = encoder.params
    with jax.default_matmul_precision("highest"):
        out = jax.jit(exact(encoder.model, params).apply)(
            {"params": params}, tokenize(encoder.tokenizer, [""])
        )
    return {layer: np.asarray(out.keys[layer][0]) for layer in layers}
