"""What Stage II refuses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stage_two_oracle import (
    BLOCK,
    CONFIG,
    brute_moments,
    jax_params,
    make_memories,
    make_prompts,
)

from emcid_jax.editing.stage_two.solve import solve
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.runtime.errors import UserError


def test_a_protecting_solver_wants_its_protection(numpy_clip, captions):
    with pytest.raises(UserError, match=r"solver is 'nullspace'; give the protection"):
        refused(numpy_clip, captions, config=dataclasses.replace(CONFIG, solver="nullspace"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 0, 3)}, "ascending"),
        ({"layers": ()}, "ascending"),
        ({"layers": (1, 1, 3)}, "ascending"),
        ({"layers": (0, 4)}, "blocks 0 to 3"),
        ({"layers": (0, 2)}, r"stage_one\.layer is 3"),
        ({"edit_weight": 1.0}, "edit_weight is 1.0"),
        ({"edit_weight": 0.0}, "edit_weight is 0.0"),
        ({"preservation_weight": 0.0}, "preservation_weight is 0.0"),
        ({"preservation_weight": float("nan")}, "preservation_weight is nan"),
    ],
)
def test_bad_settings(numpy_clip, captions, changes, message):
    with pytest.raises(UserError, match=message):
        refused(numpy_clip, captions, config=dataclasses.replace(CONFIG, **changes))


def test_bad_inputs(numpy_clip, captions):
    prompts = make_prompts(4)
    memories = make_memories(numpy_clip, prompts).astype(np.float32)
    nan = memories.copy()
    nan[2, 1] = np.nan
    with pytest.raises(UserError, match="request 2 is not finite"):
        refused(numpy_clip, captions, memories=nan)
    with pytest.raises(UserError, match="memories have shape"):
        refused(numpy_clip, captions, memories=memories[:3])
    with pytest.raises(UserError, match="request 1 has -1"):
        refused(numpy_clip, captions, weights=np.array([1.0, -1, 1, 1]))
    late = dataclasses.replace(prompts, positions=prompts.positions + 16 * (prompts.positions > 9))
    with pytest.raises(UserError, match="within 16 tokens"):
        refused(numpy_clip, captions, prompts=late)
    with pytest.raises(UserError, match="another model"):
        refused(numpy_clip, captions, model_hash="other")
    with pytest.raises(UserError, match=r"lack layers \[2\]"):
        refused(numpy_clip, captions, without=2)
    with pytest.raises(UserError, match=r"layer 0: .*not positive definite"):
        refused(numpy_clip, captions[:2])


def refused(
    clip,
    captions,
    *,
    config=CONFIG,
    memories=None,
    prompts=None,
    model_hash=None,
    without=None,
    weights=None,
):
    base = make_prompts(4)
    params = jax_params(clip, np.float32)
    moments = brute_moments(clip, captions, params)
    if model_hash is not None:
        about = dataclasses.replace(moments.provenance, model_hash=model_hash)
        moments = dataclasses.replace(moments, provenance=about)
    moments.moments.pop(without, None)
    if memories is None:
        memories = make_memories(clip, base).astype(np.float32)
    model, prompts = ClipTextModel(clip.config), base if prompts is None else prompts
    solve(model, params, memories, prompts, moments, config, block=BLOCK, weights=weights)
