"""Statistics of `fc1`'s input against an encoder in NumPy, token by token."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.editing.units import contexts, recognise, statistics
from emcid_jax.editing.units.strangers import strangers
from emcid_jax.models.text.clip import end_positions
from emcid_jax.pipelines.pipeline import load_pipeline, tokenize
from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.bundled import BUNDLED, model_folder

CAPTIONS = [
    "a photo of a red fox",
    "a photo of a small owl in the snow",
    "an image of a blue whale",
    "a red fox",
    "the whale and the owl",
    "a cat",
]
BLOCK = 1


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def found(pipeline):
    return statistics.measure(pipeline.encoder, CAPTIONS, BLOCK, seed=3, batch=2)


def oracle(pipeline, ids) -> np.ndarray:
    """The input of `fc1` of BLOCK at every token, by transformers in float64."""
    import torch
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(pipeline.folder / "text_encoder").double().eval()
    model, seen = getattr(text, "text_model", text), []
    model.encoder.layers[BLOCK].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].detach().numpy())
    )
    with torch.no_grad():
        text(torch.as_tensor(ids))
    return seen[0]


def test_mean_covariance_and_reference_are_those_of_every_token(pipeline, found):
    ids = tokenize(pipeline.encoder.tokenizer, CAPTIONS)
    ends = np.asarray(end_positions(jnp.asarray(ids), pipeline.encoder.model.config.eos_token_id))
    states = oracle(pipeline, ids)
    rows = np.concatenate([one[: end + 1] for one, end in zip(states, ends, strict=True)])
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-4)
    # Everything that begins alike is one row of the reference.
    prefixes = {
        tuple(one[: place + 1]): state[place]
        for one, state, end in zip(ids.tolist(), states, ends, strict=True)
        for place in range(end + 1)
    }
    assert len(found.reference) == len(prefixes)
    recent = [tuple(row[row > 0]) for row in found.recent.tolist() for row in [np.array(row)]]
    by_recent: dict[tuple[int, ...], list[np.ndarray]] = {}
    for prefix, state in prefixes.items():
        by_recent.setdefault(prefix[-statistics.RECENT :], []).append(state)
    for key, row in zip(recent, found.reference.astype(np.float64), strict=True):
        assert min(np.abs(row - state).max() for state in by_recent[key]) < 2e-3


def test_they_are_read_as_they_were_written_and_damage_is_seen(found, tmp_path):
    path = tmp_path / "units.safetensors"
    statistics.write_statistics(path, found)
    again = statistics.read_statistics(path)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        statistics.read_statistics(path)


def test_a_block_that_is_not_there_is_refused(pipeline):
    with pytest.raises(UserError, match="blocks are 0 to 3"):
        statistics.measure(pipeline.encoder, CAPTIONS, 4)


def test_contexts_depend_on_the_name_alone():
    pool = contexts.beginnings(CAPTIONS, 50, 0)
    assert pool == contexts.beginnings(CAPTIONS, 50, 0) != contexts.beginnings(CAPTIONS, 50, 1)
    assert all(one.endswith("{}") and one.count("{}") == 1 for one in pool)
    lengths = np.array([len(one.split()) for one in pool])
    fox, again, owl = (
        contexts.chosen(name, lengths, 4, 9).tolist() for name in ("fox", "fox", "owl")
    )
    assert fox == again != owl
    assert len(fox) == len(set(fox)) == 9
    assert lengths[fox].max() <= 4


def test_prompts_have_the_tokens_of_the_whole_text(pipeline):
    tokenizer = pipeline.encoder.tokenizer
    names = ["red fox", "jeweler's loupe", "H. R. (Hans Ruedi) Giger", "ten-gallon hat, 2"]
    pool = contexts.beginnings(CAPTIONS, 30, 4)
    own = [("a photo of {} here", "{}")] * 3 + [("{}",)]
    found = contexts.name_prompts(tokenizer, names, own, pool, 6, names)
    for row, name in enumerate(names):
        texts = {
            tuple(tokenizer(one.replace("{}", name))["input_ids"]) for one in (*own[row], *pool)
        }
        shown = [
            tuple(ids[ids != tokenizer.pad_token_id].tolist())
            for ids, counts in zip(found.ids[row], found.mask[row], strict=True)
            if counts
        ]
        plain = {tuple(i for i in one if i != tokenizer.pad_token_id) for one in texts}
        assert set(shown) <= plain
        assert len(shown) == len(own[row]) + 6
        tail = tokenizer(name, add_special_tokens=False)["input_ids"]
        for ids, place, counts in zip(
            found.ids[row], found.positions[row], found.mask[row], strict=True
        ):
            assert not counts or ids[place + 1 - len(tail) : place + 1].tolist() == tail


def test_names_are_recognised_where_they_stand(pipeline):
    def recent(text: str) -> list[int]:
        ids = pipeline.encoder.tokenizer([text])["input_ids"][0][:-1]
        return ([0] * statistics.RECENT + ids)[-statistics.RECENT :]

    texts = ["a red fox", "a fox", "two foxs", "a red fox runs", "an owl"]
    rows = np.array([recent(text) for text in texts], np.int32)
    own = recognise.own_rows(pipeline.encoder.tokenizer, ["red fox", "fox", "owl", "cat"], rows)
    assert [one.tolist() for one in own] == [[0], [0, 1, 2], [4], []]


def test_strangers_are_other_words_that_end_alike():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model_folder(BUNDLED) / "tokenizer")
    names = ["grunter", "violin", "acoustic guitar", "red grunter"]
    tokens = [tokenizer.tokenize(name) for name in names]
    pool = contexts.beginnings(CAPTIONS, 20, 0)
    prompts = contexts.name_prompts(tokenizer, names, [("a photo of {}",)] * 4, pool, 3, names)
    found, strange = strangers(tokenizer, names, prompts, 0)
    last = type(prompts)(*(part[3:] for part in prompts))
    again, other = (strangers(tokenizer, names[3:], last, draw)[0].ids for draw in (0, 1))
    np.testing.assert_array_equal(found.ids[3:], again)
    assert (again != other).any()
    assert strange.any(axis=1).tolist() == [True, False, False, True]
    every = strangers(tokenizer, names, prompts, 0, every=True)[1]
    assert every.any(axis=1).tolist() == [len(parts) > 1 for parts in tokens]
    for row, parts in enumerate(tokens):
        for old, new, end in zip(
            prompts.ids[row], found.ids[row], prompts.positions[row], strict=True
        ):
            inside = slice(end - len(parts) + 1, end)
            assert tokenizer.convert_ids_to_tokens(old[inside].tolist()) == parts[:-1]
            np.testing.assert_array_equal(np.delete(new, inside), np.delete(old, inside))
            drawn = tokenizer.convert_ids_to_tokens(new[inside].tolist())
            assert [one.endswith("</w>") for one in drawn] == [
                one.endswith("</w>") for one in parts[:-1]
            ]


def test_covariance_within_names_is_the_mean_of_each_names_own():
    states = np.random.default_rng(0).normal(size=(6, 5, 3)) + 10 * np.arange(6)[:, None, None]
    wanted = np.mean([np.cov(one, rowvar=False) for one in states], axis=0)
    np.testing.assert_allclose(statistics.within_names(states), wanted)
