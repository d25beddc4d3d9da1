"""What goes into Stage I's loop, against PyTorch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextModel

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one.prepare import check_lengths, prepare
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError

CONFIG = StageOneConfig(layer=2)
REQUESTS = [
    EditRequest("a dog", "a cat", ("a photo of {}", "{}")),
    EditRequest("Claude Monet", "Salvador Dali", ("the art of {}",)),
    EditRequest("the city", "the beach", ("a picture of {}", "{}")),
]
SEEDS = [3, 2**32 - 1, 2**32 + 3]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def prompts(pipeline):
    readers = (source_prompts, destination_prompts)
    return tuple(read(pipeline.encoder.tokenizer, REQUESTS) for read in readers)


def test_inputs_equal_pytorch(pipeline, prompts, tiny_pipeline_folder):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 16, 16, 3)).astype(np.float32)
    source, destination = prompts
    inputs = prepare(pipeline, source, destination, SEEDS, images, CONFIG)
    text = CLIPTextModel.from_pretrained(tiny_pipeline_folder / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(tiny_pipeline_folder / "vae").eval()
    with torch.no_grad():
        rows = torch.as_tensor(source.ids.reshape(6, -1)).long()
        states = text(rows, output_hidden_states=True).hidden_states[CONFIG.layer + 1]
        clean = text(torch.as_tensor(destination.ids.reshape(6, -1)).long())
        flat = torch.as_tensor(images).reshape(12, 16, 16, 3).permute(0, 3, 1, 2)
        posterior = vae.encode(flat).latent_dist

    def close(got, wanted):
        np.testing.assert_allclose(got, wanted.reshape(got.shape), rtol=1e-4, atol=1e-5)

    own = inputs.encoders["text_encoder"]
    close(own.hidden, states)
    close(inputs.teacher.tokens, clean.last_hidden_state)
    close(own.target_features, clean.pooler_output)
    scale = vae.config.scaling_factor
    close(inputs.latent_mean, scale * posterior.mean.permute(0, 2, 3, 1))
    close(inputs.latent_std, scale * posterior.std.permute(0, 2, 3, 1))
    for i, position in enumerate(source.positions[:, 0]):
        close(inputs.h0[i], states.reshape(3, 2, *states.shape[1:])[i, 0, position])
    np.testing.assert_array_equal(inputs.prompt_mask, [[1, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(inputs.seeds, [[0, 3], [0, 2**32 - 1], [1, 3]])


def test_unknown_layer_is_named(pipeline, prompts):
    config = StageOneConfig(layer=4, objective="text-only")
    with pytest.raises(UserError, match=r"stage_one.layer is 4, .* blocks 0 to 3"):
        prepare(pipeline, *prompts, SEEDS, None, config)


def test_prompts_that_text_tokens_would_cut_are_named(pipeline, prompts):
    source, end = prompts[0], pipeline.encoder.tokenizer.eos_token_id
    lengths = ((source.ids == end).argmax(-1) + 1).max(-1).tolist()
    origins = ["a.csv:1", "a.csv:2", "a.csv:3"]
    longest = max(lengths)
    config = dataclasses.replace(CONFIG, text_tokens=longest)
    check_lengths(source, origins, end, config)  # The end token is the last one that is read.
    check_lengths(source, origins, end, CONFIG)
    with pytest.raises(UserError) as caught:
        check_lengths(source, origins, end, dataclasses.replace(config, text_tokens=longest - 1))
    lines = str(caught.value).splitlines()
    assert len(lines) == lengths.count(longest)
    first = origins[lengths.index(longest)]
    assert lines[0] == (
        f"{first}: a prompt has {longest} tokens, stage_one.text_tokens is {longest - 1}; "
        f"give {longest} or more, or 0 for all"
    )


def test_prompts_without_room_for_the_edited_padding_are_named(pipeline, prompts):
    source, end = prompts[0], pipeline.encoder.tokenizer.eos_token_id
    lengths = ((source.ids == end).argmax(-1) + 1).max(-1).tolist()
    origins, longest = ["a.csv:1", "a.csv:2", "a.csv:3"], max(lengths)
    first = origins[lengths.index(longest)]
    config = dataclasses.replace(CONFIG, text_tokens=longest + 2, edited_tokens=4)
    check_lengths(source, origins, end, config)
    with pytest.raises(UserError) as caught:
        check_lengths(source, origins, end, dataclasses.replace(config, edited_tokens=5))
    assert str(caught.value).splitlines()[0] == (
        f"{first}: a prompt has {longest + 3} tokens, edited padding included, "
        f"stage_one.text_tokens is {longest + 2}; give {longest + 3} or more, or 0 for all"
    )
    most = source.ids.shape[-1] - longest + 2
    check_lengths(source, origins, end, dataclasses.replace(CONFIG, edited_tokens=most))
    with pytest.raises(UserError, match=rf"the model reads {source.ids.shape[-1]}; shorten it or"):
        check_lengths(source, origins, end, dataclasses.replace(CONFIG, edited_tokens=most + 1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text_encoder", "source text states of request 0 and 2 more are not finite"),
        ("vae", "latents of training images of request 0 and 2 more are not finite"),
    ],
)
def test_what_is_not_finite_is_an_error(part, message, pipeline, prompts):
    broken = {part: jax.tree.map(lambda leaf: leaf * np.nan, pipeline.params[part])}
    pipeline = dataclasses.replace(pipeline, params=pipeline.params | broken)
    images = np.zeros((3, 2, 2, 16, 16, 3), np.float32)
    with pytest.raises(UserError, match=message):
        prepare(pipeline, *prompts, SEEDS, images, CONFIG)
