"""What solvers that protect leave alone, through the whole of Stage II."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stage_two_oracle import (
    BAR,
    CONFIG,
    assert_same,
    jax_params,
    plain,
    solved,
)

from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.nullspace import nullspace
from emcid_jax.editing.stage_two.preservation import Protection
from emcid_jax.editing.stage_two.solve import apply_edit


def make_protection(clip, captions) -> Protection:
    """Pristine keys of some captions are kept, those of another one are held."""
    keys = clip.forward(captions[:6]).keys
    flat = {layer: k.reshape(-1, k.shape[-1]) for layer, k in enumerate(keys)}
    held = {layer: k[0, :7] for layer, k in enumerate(clip.forward(captions[7:8]).keys)}
    return Protection({layer: 0.5 * k.T @ k for layer, k in flat.items()}, held)


@pytest.mark.parametrize(("requests", "solve"), [(11, "host"), (90, "host"), (11, "device")])
def test_kept_keys_are_requests_for_no_change(numpy_clip, captions, requests, solve):
    """The oracle appends every kept key to the requests, with weight 0.5 and residual 0."""
    tokens = {
        layer: k.reshape(-1, 64) for layer, k in enumerate(numpy_clip.forward(captions[:6]).keys)
    }

    def solver(keys, residuals, moment, weights, strength, layer):
        kept = tokens[layer]
        return plain(
            np.concatenate([keys, kept]),
            np.concatenate([residuals, np.zeros((len(kept), 32))]),
            moment,
            np.concatenate([weights, np.full(len(kept), 0.5)]),
            strength,
            layer,
        )

    config = dataclasses.replace(CONFIG, solver="ridge+preserve", solve_on=solve)
    protection = make_protection(numpy_clip, captions)
    both = solved(
        numpy_clip, captions, config, requests=requests, protection=protection, solver=solver
    )
    assert_same(both.edit.deltas, both.expected, BAR)
    without = solved(numpy_clip, captions, CONFIG, requests=requests).edit.deltas
    for layer, delta in without.items():
        assert np.linalg.norm(both.edit.deltas[layer] @ tokens[layer].T) < 0.5 * np.linalg.norm(
            delta @ tokens[layer].T
        )


def test_null_space_holds_a_prompt_through_all_layers(numpy_clip, captions):
    """Layer by layer what `nullspace` gives on a full pass, and the held tokens do not move."""
    config = dataclasses.replace(CONFIG, solver="nullspace", nullspace_energy=0.5)
    protection = make_protection(numpy_clip, captions)

    def solver(keys, residuals, moment, weights, strength, layer):
        kept = Moment(moment + protection.kept[layer] / strength)
        held = protection.held[layer]
        return nullspace(keys, residuals, kept, weights, strength, held=held, energy=0.5).delta

    both = solved(numpy_clip, captions, config, protection=protection, solver=solver)
    assert_same(both.edit.deltas, both.expected, BAR)
    with jax.enable_x64(True):
        params = jax_params(numpy_clip, np.float64)
        edited = jax.tree.map(np.asarray, apply_edit(params, both.edit))
    one, other = captions[7:8], captions[8:9]
    before, after = (numpy_clip.forward(one, tree).hidden[3] for tree in (None, edited))
    np.testing.assert_allclose(after[0, :7], before[0, :7], atol=1e-10)
    moved = numpy_clip.forward(other, edited).hidden[3] - numpy_clip.forward(other).hidden[3]
    assert np.abs(moved[0, 1:7]).max() > 1e-3
