"""Stage I with two offsets: loss and gradient against an independent PyTorch loop, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.encoder.sites import by_site, sites
from emcid_jax.editing.stage_one import loss, run
from emcid_jax.editing.stage_one.loss import Draw
from emcid_jax.editing.stage_one.prepare import prepare
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError
from tests.helpers import torch_attention

REQUESTS = [
    EditRequest("a dog", "a cat", ("a photo of {}", "an image of {}"), seed=3),
    EditRequest("Claude Monet", "Salvador Dali", ("the art of {}",), seed=4),
]
LAYERS = {"text_encoder": 2, "text_encoder_2": 1}
SETTINGS = {
    "layer": 2,
    "second_layer": 1,
    "weight_decay": 0.7,
    "text_loss_scale": 0.3,
    "esd_guidance": 1.5,
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipeline(tiny_xl_folder):
    return load_pipeline(tiny_xl_folder)


@pytest.fixture(scope="module")
def oracle(tiny_xl_folder):
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    texts = {
        name: kind.from_pretrained(tiny_xl_folder / name).double().eval()
        for name, kind in kinds.items()
    }
    unet = UNet2DConditionModel.from_pretrained(tiny_xl_folder / "unet").double().eval()
    return texts, unet


def encode(texts, pipeline, prompt, offsets, position):
    """What the UNet reads, and the features that the text loss compares."""
    states, features = [], []
    for name, text in texts.items():
        ids = tokenize(pipeline.tokenizers[name], [prompt])
        layer = getattr(text, "text_model", text).encoder.layers[LAYERS[name]]
        forward = layer.forward

        def edited(*arguments, forward=forward, name=name, **options):
            output = forward(*arguments, **options)
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, position] = hidden[:, position] + offsets[name]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        # Not by a hook: those that collect the hidden states may run before it.
        layer.forward = forward if offsets is None else edited
        out = text(torch.as_tensor(ids).long(), output_hidden_states=True)
        layer.forward = forward
        states.append(out.hidden_states[-2])
        features.append(out.text_embeds if name == "text_encoder_2" else out.pooler_output)
    return (torch.cat(states, -1), features[1]), features


def predict(unet, noisy, t, read):
    ids = torch.tensor([[16, 16, 0, 0, 16, 16]], dtype=torch.float64).repeat(len(noisy), 1)
    added = {"text_embeds": read[1], "time_ids": ids}
    return unet(
        noisy, torch.as_tensor(t), encoder_hidden_states=read[0], added_cond_kwargs=added
    ).sample


def torch_loss(oracle, pipeline, request, draw, position, offsets, h0, config) -> Any:
    """One concept, prompt by prompt; of `esd` guidance leads away from zeros."""
    texts, unet = oracle
    alphas = torch.as_tensor(pipeline.schedule.alphas_cumprod)
    noise_losses, text_losses, apart, layers = [], [], [], []
    if config.objective == "attention":
        zeros = [torch.zeros_like(x) for x in encode(texts, pipeline, "", None, 0)[0]]
        layers = torch_attention.queries(
            unet,
            pipeline.latent_size,
            lambda latents, t: predict(
                unet,
                latents,
                t,
                [part.repeat(len(latents), *[1] * (part.ndim - 1)) for part in zeros],
            ),
        )
    for i, template in enumerate(request.templates):
        source = template.replace("{}", request.source)
        student, features = encode(texts, pipeline, source, offsets, position[i])
        with torch.no_grad():
            wanted = template.replace("{}", request.dests[0])
            teacher, targets = encode(texts, pipeline, wanted, None, 0)
            clean, _ = encode(texts, pipeline, source, None, 0)
            if config.objective == "esd":
                _, targets = encode(texts, pipeline, "", None, 0)
        pairs = zip(features, targets, strict=True)
        parts = [torch.nn.functional.mse_loss(ours, theirs) for ours, theirs in pairs]
        text_losses.append(parts[0] + (parts[1] if config.pooled_text_loss else 0.0))
        if config.objective == "text-only":
            noise_losses.append(torch.zeros((), dtype=torch.float64))
            continue
        if config.objective == "attention":
            goal = teacher[0][0]
            noise_losses.append(torch_attention.errors(layers, student[0][0], goal))
            apart.append(torch_attention.errors(layers, clean[0][0], goal))
            continue
        latents, noise = (
            torch.tensor(np.array(part[i], np.float64)).permute(2, 0, 1)[None]
            for part in (draw.latents, draw.noise)
        )
        t = int(draw.timesteps[i])
        noisy = alphas[t] ** 0.5 * latents + (1 - alphas[t]) ** 0.5 * noise
        predicted = predict(unet, noisy, t, student)
        with torch.no_grad():
            if config.objective == "esd":
                free = predict(unet, noisy, t, tuple(torch.zeros_like(x) for x in clean))
                target = free - config.esd_guidance * (predict(unet, noisy, t, clean) - free)
            else:
                target = predict(unet, noisy, t, teacher)
        noise_losses.append(torch.nn.functional.mse_loss(predicted, target))
    decay = config.weight_decay * sum(
        offsets[name].norm() / h0[name].norm() ** 2 for name in offsets
    )
    noise, text = torch.stack(noise_losses).mean(dim=0), torch.stack(text_losses).mean()
    if apart:
        noise = (noise / torch.stack(apart).mean(dim=0)).mean()
    return noise + decay + config.text_loss_scale * text, noise, text, decay


@pytest.mark.parametrize(
    ("objective", "pooled"),
    [
        ("ablate-dest", True),
        pytest.param("ablate-dest", False, marks=pytest.mark.slow),
        pytest.param("esd", True, marks=pytest.mark.slow),
        pytest.param("text-only", True, marks=pytest.mark.slow),
        ("attention", True),
    ],
)
def test_loss_and_gradient_of_two_offsets_equal_pytorch(objective, pooled, pipeline, oracle):
    config = StageOneConfig(**SETTINGS, objective=objective, pooled_text_loss=pooled)
    tokenizer = pipeline.encoder.tokenizer
    source, destination = (
        source_prompts(tokenizer, REQUESTS),
        destination_prompts(tokenizer, REQUESTS),
    )
    rng = np.random.default_rng(5)
    shape = (*source.mask.shape, *pipeline.latent_size)
    latents, noise = rng.standard_normal((2, *shape), np.float32)
    draw = Draw(latents, noise, rng.integers(0, 1000, source.mask.shape, np.int32))
    images = np.zeros((2, 1, 2, 16, 16, 3), np.float32)
    inputs = prepare(pipeline, source, destination, [0, 1], images, config)
    inputs = jax.tree.map(jnp.asarray, inputs)
    where = sites(config, pipeline.texts)
    delta = (0.3 * rng.standard_normal(inputs.h0.shape)).astype(np.float32)

    params = pipeline.params
    if objective == "attention":
        params = run.model_params(pipeline, config)

    @jax.jit
    def evaluate(delta):
        sample = None
        if objective == "attention":
            sample = loss.wanted(pipeline, params, inputs, config)
        elif objective != "text-only":
            drawn = Draw(*map(jnp.asarray, draw))
            sample = loss.make_sample(pipeline, pipeline.params, inputs, drawn, config)
        return loss.loss_and_gradient(pipeline, params, inputs, delta, sample, config)

    parts, gradient = evaluate(delta)
    for i, request in enumerate(REQUESTS):
        split = by_site(delta[i], where)
        offsets = {
            name: torch.tensor(rows[0], dtype=torch.float64, requires_grad=True)
            for name, rows in split.items()
        }
        h0 = {
            name: torch.tensor(rows[0], dtype=torch.float64)
            for name, rows in by_site(np.asarray(inputs.h0[i]), where).items()
        }
        expected = torch_loss(
            oracle,
            pipeline,
            request,
            Draw(*(part[i] for part in draw)),
            source.positions[i],
            offsets,
            h0,
            config,
        )
        expected[0].backward()
        wanted = [float(part.detach()) for part in expected]
        np.testing.assert_allclose([part[i] for part in parts], wanted, rtol=TOLERANCE)
        found = by_site(np.asarray(gradient[i]), where)
        for name, offset in offsets.items():
            assert offset.grad is not None
            theirs = offset.grad.numpy()
            assert np.abs(found[name][0] - theirs).max() <= TOLERANCE * np.abs(theirs).max()
            assert np.abs(theirs).max() > 0


def test_only_blocks_that_are_read_can_be_edited(pipeline):
    texts = pipeline.texts
    assert [(site.encoder, site.layer) for site in sites(StageOneConfig(**SETTINGS), texts)] == [
        ("text_encoder", 2),
        ("text_encoder_2", 1),
    ]
    for change, message in (
        ({"layer": 3}, r"stage_one.layer is 3, but text_encoder has blocks 0 to 2"),
        ({"second_layer": 4}, r"second_layer is 4, but text_encoder_2 has blocks 0 to 3"),
    ):
        with pytest.raises(UserError, match=message):
            sites(StageOneConfig(**(SETTINGS | change)), texts)
    only = sites(StageOneConfig(**SETTINGS, encoders="text_encoder_2"), texts)
    assert [site.encoder for site in only] == ["text_encoder_2"]
