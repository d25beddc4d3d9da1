"""Kept concepts and the empty prompt: against full forward passes, and what they do to an edit."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_two.nullspace import nullspace
from emcid_jax.editing.stage_two.preservation import Protection, protect, resolved
from emcid_jax.editing.stage_two.solve import apply_edit
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.runtime.errors import UserError
from stage_two_oracle import BAR, CONFIG, assert_same, jax_params, plain, solved

TEMPLATES = ("a photo of {}", "{}")
REQUESTS = [
    EditRequest("dog", "cat", TEMPLATES),
    EditRequest("great white shark", "goldfish", ("an image of {}", "{}")),
]
KEEP = StageTwoConfig(layers=(1, 2), solver="ridge+preserve", preserve=("nurse", "the snow"))


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


def keys_of(pipeline: Pipeline, prompt: str, layer: int) -> np.ndarray:
    """Keys from the start token to the first end token, by one plain forward pass."""
    ids = jnp.asarray(tokenize(pipeline.encoder.tokenizer, [prompt]))
    out: Any = pipeline.encoder.model.apply({"params": pipeline.params["text_encoder"]}, ids)
    last = ids[0].tolist().index(pipeline.encoder.tokenizer.eos_token_id)
    return np.asarray(out.keys[layer], np.float64)[0, : last + 1]


def summed(pipeline: Pipeline, prompts: list[str], layer: int) -> np.ndarray:
    keys = np.concatenate([keys_of(pipeline, prompt, layer) for prompt in prompts])
    return keys.T @ keys


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_kept_keys_are_those_of_every_token_of_the_prompts(pipeline: Pipeline) -> None:
    """The requests' three templates; a name counts as often as one edit, however many they are."""
    found = protect(pipeline.encoder, REQUESTS, dataclasses.replace(KEEP, protected_weight=7.0))
    assert found is not None
    assert set(found.kept) == {1, 2}
    templates = ("a photo of {}", "an image of {}", "{}")
    prompts = [t.format(name) for name in KEEP.preserve for t in templates]
    for layer, kept in found.kept.items():
        assert_close(kept, 7 / 3 * summed(pipeline, prompts, layer))

    own = dataclasses.replace(KEEP, preserve_templates=("{} at work",), protected_weight=1.0)
    found = protect(pipeline.encoder, REQUESTS, own)
    assert found is not None
    assert_close(found.kept[2], summed(pipeline, ["nurse at work", "the snow at work"], 2))


def test_held_keys_are_the_empty_prompts_with_its_padding(pipeline: Pipeline) -> None:
    found = protect(pipeline.encoder, REQUESTS, StageTwoConfig(layers=(0, 3), solver="nullspace"))
    assert found is not None
    assert set(found.held) == {0, 3}
    assert not found.kept
    ids = jnp.asarray(tokenize(pipeline.encoder.tokenizer, [""]))
    out: Any = pipeline.encoder.model.apply({"params": pipeline.params["text_encoder"]}, ids)
    for layer, keys in found.held.items():
        assert keys.shape == (ids.shape[1], 64)
        assert_close(keys, np.asarray(out.keys[layer][0]))


def test_ridge_protects_nothing(pipeline: Pipeline) -> None:
    assert protect(pipeline.encoder, REQUESTS, StageTwoConfig()) is None


def test_names_from_a_file_join_the_others(tmp_path: Path, pipeline: Pipeline) -> None:
    path = tmp_path / "names.txt"
    path.write_text("Nurse\n\n  tench \nnurse\n", "utf8")
    both = dataclasses.replace(KEEP, preserve_path=str(path))
    assert resolved(both).preserve == ("nurse", "tench", "the snow")
    assert resolved(both).preserve_path == ""
    assert resolved(resolved(both)) == resolved(both)
    # Neither order nor repetition is seen in the weights.
    other = dataclasses.replace(KEEP, preserve=("tench", "the  snow", "nurse"))
    one, two = protect(pipeline.encoder, REQUESTS, both), protect(pipeline.encoder, REQUESTS, other)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.kept[1], two.kept[1])


def test_edited_concepts_are_not_kept(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    asked = dataclasses.replace(KEEP, preserve=("Dog", "nurse", "the snow"))
    with caplog.at_level(logging.WARNING):
        found, plain = (
            protect(pipeline.encoder, REQUESTS, asked),
            protect(pipeline.encoder, REQUESTS, KEEP),
        )
    assert found is not None
    assert plain is not None
    np.testing.assert_array_equal(found.kept[1], plain.kept[1])
    assert ["1 of 3 protected concepts are edited" in r.message for r in caplog.records] == [True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StageTwoConfig(solver="ridge+preserve"), r"preserve and preserve_path are empty"),
        (StageTwoConfig(preserve=("dog",)), r"solver 'ridge' protects none"),
        (dataclasses.replace(KEEP, preserve_path="/nowhere.txt"), r"preserve_path is '/nowhere"),
        (dataclasses.replace(KEEP, preserve=("dog", " ")), r"remove empty names"),
        (dataclasses.replace(KEEP, preserve_templates=("a dog",)), r"preserve_templates\[0\]"),
    ],
)
def test_bad_settings(config: StageTwoConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(config)


def test_a_file_without_names_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    config = StageTwoConfig(solver="ridge+preserve", preserve_path=str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match="holds no name"):
        resolved(config)


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
