"""Text encoder and tokenizer: the same end token, a row for every token; against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, disk_name, end_positions
from emcid_jax.models.text.fitting import fitted
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer, tokenize
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.runtime.errors import UserError

PROMPTS = ["a photo of sks in the snow", "a dog"]


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny one with an added token, whose id is above the end token's."""
    folder = tmp_path_factory.mktemp("added") / "tokenizer"
    shutil.copytree(tiny_pipeline_folder / "tokenizer", folder)
    added: Any = load_tokenizer(folder)
    assert added.add_tokens(["sks"]) == 1
    added.save_pretrained(folder)
    return load_tokenizer(folder)


def sizes(tokenizer: Tokenizer, **fields: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "eos_token_id": 2,
    } | fields


def test_an_added_token_is_not_pooled_for_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokenize(tokenizer, PROMPTS)
    ends = [row.tolist().index(tokenizer.eos_token_id) for row in ids]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = CLIPTextModel(CLIPTextConfig(**sizes(tokenizer))).eval()
    theirs.save_pretrained(tmp_path)
    legacy = ClipTextConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    config = fitted(legacy, tokenizer, tmp_path / "config.json", tmp_path)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert end_positions(jnp.asarray(ids), config.eos_token_id).tolist() == ends
    # transformers, with 2, pools at the added token; without one, where we do.
    wrong = end_positions(jnp.asarray(ids), legacy.eos_token_id).tolist()
    assert wrong[0] == ids[0].tolist().index(len(tokenizer) - 1) != ends[0]
    assert wrong[1] == ends[1]

    model = ClipTextModel(config)
    shapes = abstract_params(model, jax.ShapeDtypeStruct(ids.shape, jnp.int32))
    params = read_params(tmp_path, shapes, disk_name)
    ours: Any = model.apply({"params": params}, jnp.asarray(ids))
    with torch.no_grad():
        as_written = theirs(torch.tensor(ids)).pooler_output.numpy()
        told: Any = CLIPTextModel.from_pretrained(tmp_path, eos_token_id=tokenizer.eos_token_id)
        mended = told.eval()(torch.tensor(ids)).pooler_output.numpy()
    np.testing.assert_allclose(ours.pooled, mended, atol=1e-5)
    np.testing.assert_allclose(ours.pooled[1], as_written[1], atol=1e-5)
    assert np.abs(ours.pooled[0] - as_written[0]).max() > 0.1


def test_without_added_tokens_the_highest_id_is_the_end(tiny_pipeline_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_pipeline_folder / "tokenizer")
    ids = jnp.asarray(tokenize(tokenizer, PROMPTS))
    config = fitted(ClipTextConfig(**sizes(tokenizer)), tokenizer, Path("c"), Path("t"))
    np.testing.assert_array_equal(end_positions(ids, config.eos_token_id), end_positions(ids, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vocab_size": 647},
            "^t: the token 'sks' has id 647, but c: vocab_size is 647, so the token table has",
        ),
        (
            {"eos_token_id": 5},
            r"^t/tokenizer_config.json: the end token has id 646, but c: eos_token_id is 5; set it",
        ),
        (
            {"max_position_embeddings": 16},
            r"^t/tokenizer_config.json: model_max_length is 32, but c: max_position_embeddings is",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_both_values(
    fields: dict[str, Any], message: str, tokenizer: Tokenizer
) -> None:
    config = ClipTextConfig(**sizes(tokenizer, **fields))
    with pytest.raises(UserError, match=message):
        fitted(config, tokenizer, Path("c"), Path("t"))
