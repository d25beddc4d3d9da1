"""Forms of a concept unit, on the bundled model: what each leaves and what it gives up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.encoder.hidden_units import HEIGHT, WIDTH, make_units
from emcid_jax.editing.units.states import fc1_inputs
from emcid_jax.models.text.transformer import ACTIVATIONS
from emcid_jax.pipelines.pipeline import load_pipeline, tokenize
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.captions import sample_captions
from studies import unit_forms
from studies.unit_forms import Setting

BLOCK = 0


@pytest.fixture(scope="module")
def encoder():
    return load_pipeline(model_folder(BUNDLED)).encoder


@pytest.fixture(scope="module")
def read(encoder):
    """What gates read at the tokens of captions, in two halves."""
    texts = [caption.text for caption in sample_captions(2_000, 3)]
    ids = np.asarray(tokenize(encoder.tokenizer, texts))
    states = np.asarray(fc1_inputs(encoder.model, encoder.params, jnp.asarray(ids), BLOCK))
    real = np.arange(ids.shape[1]) < (ids == encoder.tokenizer.eos_token_id).argmax(1)[:, None]
    rows = states[real]
    return rows[::2], rows[1::2]


@pytest.fixture(scope="module")
def setting(encoder, read):
    """Gates that no token opens: what forms change beside them is what they give up."""
    seen, _ = read
    directions = np.random.default_rng(0).normal(size=(40, seen.shape[1]))
    directions /= np.abs((seen - seen.mean(axis=0)) @ directions.T).max(axis=0)[:, None]
    thresholds = np.full(40, 3.0)
    units = make_units(BLOCK, directions, seen.mean(axis=0), thresholds, 5 * directions)
    return Setting(encoder, units, thresholds, seen)


def mlp_of(params):
    return params["text_model"]["encoder"][f"layers.{BLOCK}"]["mlp"]


def given(encoder, params, rows):
    """What the block's MLP adds at rows of its input, by NumPy."""
    first, second = (mlp_of(params)[name] for name in ("fc1", "fc2"))
    inner = rows.astype(np.float64) @ first["kernel"] + first["bias"]
    act = ACTIVATIONS[encoder.model.config.hidden_act]
    return np.asarray(act(jnp.asarray(inner, jnp.float32))) @ second["kernel"] + second["bias"]


def test_refitted_columns_take_over_most_of_what_was_given_up(encoder, read, setting):
    """On tokens that nothing was fitted to; the wider form changes none of them."""
    _, unseen = read
    before = given(encoder, encoder.params, unseen)
    changed = {}
    for form, write in unit_forms.FORMS.items():
        params = write(setting)
        width = mlp_of(params)["fc1"]["bias"].shape[0]
        assert width == (1536 if form.startswith("in place") else 1536 + 80)
        changed[form] = np.square(given(encoder, params, unseen) - before).mean()
    size = np.square(before).mean()
    assert changed["two units"] < 1e-9 * size
    plain = changed["in place, least used, not refitted"]
    assert changed["in place"] < changed["in place, least used"] < 0.5 * plain < 0.01 * size
    assert plain > 1e-7 * size


def test_open_gates_answer_alike_in_every_form(encoder, read, setting):
    """At a token where a gate scores 1 above its threshold's ramp, all forms add its answer."""
    seen, _ = read
    units, mean = setting.units, seen.mean(axis=0)
    direction = units.rows[7].astype(np.float64) / (HEIGHT / WIDTH)
    row = mean + 3.2 * direction / (direction @ direction)
    answer = HEIGHT * units.answers[7]
    for form in unit_forms.FORMS.keys() - {"one unit"}:
        found = given(encoder, unit_forms.FORMS[form](setting), row[None])
        clean = given(encoder, encoder.params, row[None])
        along = (found - clean)[0] @ answer / (answer @ answer)
        assert abs(along - 1) < 0.2, form
