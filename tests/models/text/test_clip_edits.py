"""Edits of the text encoder's states against a torch hook, and runs that start at a block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from clip_oracle import BLOCKS, DIM, TOKENS, assert_same, prompts, relative_error, torch_states


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_delta_equals_a_torch_hook(block, masked, models):
    ours, params, theirs = models
    ids, mask = prompts()
    mask = mask if masked else None
    position = jnp.array([2, 5, 0])
    delta = np.random.default_rng(5).standard_normal((3, DIM)).astype(np.float32)
    out = ours.apply(
        {"params": params}, ids, mask, delta=jnp.asarray(delta), position=position, block=block
    )
    edit = (block, position, torch.tensor(delta))
    assert_same(out, torch_states(theirs, ids, mask, edit))


def test_gradient_of_delta_equals_autograd(models):
    ours, params, theirs = models
    ids, _ = prompts()
    position = jnp.array([2, 5, 7])
    rng = np.random.default_rng(6)
    delta = rng.standard_normal((3, DIM)).astype(np.float32)
    weight = rng.standard_normal((3, TOKENS, DIM)).astype(np.float32)

    def loss(delta):
        out = ours.apply({"params": params}, ids, delta=delta, position=position, block=1)
        return (out.last_hidden_state * weight).sum() + out.pooled.sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(delta))
    leaf = torch.tensor(delta, requires_grad=True)
    out = torch_states(theirs, ids, edit=(1, position, leaf))[0]
    ((out.last_hidden_state * torch.tensor(weight)).sum() + out.pooler_output.sum()).backward()
    assert relative_error(gradient, leaf.grad) <= 1e-4


@pytest.mark.parametrize("start", range(BLOCKS + 1))
def test_resuming_gives_the_states_of_the_full_run(start, models):
    ours, params, theirs = models
    ids, mask = prompts()
    delta = jnp.asarray(np.random.default_rng(7).standard_normal((3, DIM)), jnp.float32)
    edit = {"delta": delta, "position": jnp.array([1, 3, 6]), "block": 1}
    full = ours.apply({"params": params}, ids, mask, **edit)
    if start == 0:
        hidden = theirs.embeddings(torch.tensor(np.asarray(ids)).long()).detach().numpy()
        hidden = jnp.asarray(hidden)
    else:
        hidden = full.hidden[start - 1]
    edit = edit if start <= 1 else {}
    resumed = ours.apply({"params": params}, ids, mask, hidden=hidden, start=start, **edit)
    for name in ("hidden", "keys", "values"):
        before, after = getattr(full, name), getattr(resumed, name)
        assert after[:start] == (None,) * start
        for index in range(start, BLOCKS):
            np.testing.assert_allclose(after[index], before[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        resumed.last_hidden_state, full.last_hidden_state, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(resumed.pooled, full.pooled, rtol=1e-5, atol=1e-5)


def test_resuming_needs_no_parameters_below(models):
    ours, params, _ = models
    ids, _ = prompts()
    full = ours.apply({"params": params}, ids)
    text = params["text_model"]
    upper = {"encoder": {"layers.3": text["encoder"]["layers.3"]}}
    upper = {"text_model": upper | {"final_layer_norm": text["final_layer_norm"]}}
    resumed = ours.apply({"params": upper}, ids, hidden=full.hidden[2], start=3)
    np.testing.assert_allclose(resumed.pooled, full.pooled, rtol=1e-5, atol=1e-5)


def test_unused_blocks_are_not_computed(models):
    ours, params, _ = models
    ids, _ = prompts()

    def operations(use):
        def run(params, ids):
            return use(ours.apply({"params": params}, ids))

        return jax.jit(run).lower(params, ids).compile().cost_analysis()["flops"]

    everything = operations(lambda out: out.last_hidden_state)
    assert 0 < operations(lambda out: out.keys[0]) < everything / BLOCKS
    assert operations(lambda out: out.values[1]) < 2.1 * everything / BLOCKS


def test_position_outside_the_prompt_changes_nothing(models):
    ours, params, _ = models
    ids, _ = prompts()
    plain = ours.apply({"params": params}, ids)
    edit = {"delta": jnp.ones((3, DIM)), "position": jnp.array([-1, TOKENS, 99]), "block": 0}
    edited = ours.apply({"params": params}, ids, **edit)
    np.testing.assert_array_equal(edited.last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": jnp.zeros((3, DIM))}, "all of delta, position and block"),
        ({"block": 1}, "all of delta, position and block"),
        ({"start": 1}, "without hidden"),
        ({"start": 9, "hidden": jnp.zeros((3, TOKENS, DIM))}, "has 4 blocks"),
        (
            {
                "delta": jnp.zeros((3, DIM)),
                "position": jnp.zeros(3, jnp.int32),
                "block": 1,
                "start": 2,
                "hidden": jnp.zeros((3, TOKENS, DIM)),
            },
            "blocks 2 to 3 run",
        ),
    ],
)
def test_impossible_calls_are_refused(options, message, models):
    ours, params, _ = models
    with pytest.raises(ValueError, match=message):
        ours.apply({"params": params}, prompts()[0], **options)


def test_too_long_prompt_is_refused(models):
    ours, params, _ = models
    with pytest.raises(ValueError, match="13 tokens; the model takes 12"):
        ours.apply({"params": params}, jnp.zeros((1, TOKENS + 1), jnp.int32))
