"""Loss and gradient against PyTorch: diffusers, transformers, autograd, the released formulas."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel

from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import loss, run
from emcid_jax.editing.stage_one.loss import Draw
from emcid_jax.editing.stage_one.prepare import prepare
from emcid_jax.pipelines.pipeline import load_pipeline, tokenize
from tests.helpers import torch_attention

LAYER = 1
PROMPTS = [["a red fox", "fox"], ["an image of a small owl", "an owl"]]
DESTINATIONS = [["a blue whale", "whale"], ["a cat", "cat"]]
# The second concept has one prompt only; its second row pads the rectangle.
MASK = np.array([[True, True], [True, False]])
POSITION = np.array([[3, 1], [4, 2]], np.int32)
TOLERANCE = 1e-4


class Oracle(NamedTuple):
    """The clean models in PyTorch, float64."""

    text: torch.nn.Module
    unet: torch.nn.Module

    def encode(self, ids, delta=None, position=0):
        """(last hidden state, pooled) with `delta` added to the output of block LAYER.

        `position` is a list of tokens, `delta` has a row for each.
        """
        model = getattr(self.text, "text_model", self.text)

        def add(module, arguments, output):
            hidden = output[0] if isinstance(output, tuple) else output
            edited = hidden.clone()
            edited[:, position] = edited[:, position] + delta
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        handle = (
            model.encoder.layers[LAYER].register_forward_hook(add) if delta is not None else None
        )
        out = self.text(torch.as_tensor(ids)[None])
        if handle is not None:
            handle.remove()
        return out.last_hidden_state, out.pooler_output

    def predict(self, noisy, t, text):
        return self.unet(noisy, torch.as_tensor(t), encoder_hidden_states=text).sample

    def queries(self, pipeline):
        """Of the empty prompt; see `torch_attention`."""
        empty, _ = self.encode(tokenize(pipeline.encoder.tokenizer, [""])[0])
        return torch_attention.queries(
            self.unet,
            pipeline.latent_size,
            lambda latents, t: self.predict(latents, t, empty.repeat(len(latents), 1, 1)),
        )


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder):
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def oracle(tiny_pipeline_folder):
    text = CLIPTextModel.from_pretrained(tiny_pipeline_folder / "text_encoder").double().eval()
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline_folder / "unet").double().eval()
    return Oracle(text, unet)


@pytest.fixture(scope="module")
def prompts(pipeline):
    def rectangle(texts):
        rows = np.stack([tokenize(pipeline.encoder.tokenizer, row) for row in texts])
        return PromptRectangle(rows, POSITION, MASK)

    return rectangle(PROMPTS), rectangle(DESTINATIONS)


def random_draw(pipeline):
    random = np.random.default_rng(0)
    shape = (*MASK.shape, *pipeline.latent_size)
    latents, noise = random.standard_normal((2, *shape), np.float32)
    return Draw(latents, noise, random.integers(0, 1000, MASK.shape, np.int32))


def edited(pipeline, ids, position, count):
    """The subject, the end and padding, by looking for the end token."""
    end = ids.tolist().index(pipeline.encoder.tokenizer.eos_token_id)
    return [int(position), *range(end, end + count - 1)]


def torch_loss(oracle, pipeline, source, destination, position, mask, draw, delta, h0, config):
    """One concept by the released procedure's formulas, prompt by prompt; draw in NHWC."""
    alphas = torch.as_tensor(pipeline.schedule.alphas_cumprod)
    velocity = pipeline.schedule.prediction_type == "v_prediction"
    empty_ids = tokenize(pipeline.encoder.tokenizer, [""])[0, : source.shape[-1]]
    noise_losses, text_losses, apart = [], [], []
    layers = oracle.queries(pipeline) if config.objective == "attention" else []
    for prompt in np.flatnonzero(mask):
        count = config.edited_tokens
        here = edited(pipeline, source[prompt], position[prompt], count)
        student, pooled = oracle.encode(source[prompt], delta.reshape(count, -1), here)
        with torch.no_grad():
            teacher_ids = empty_ids if config.objective == "esd" else destination[prompt]
            teacher, teacher_pooled = oracle.encode(teacher_ids)
            clean, _ = oracle.encode(source[prompt])
        if count > 1:
            subject = 1 if config.objective == "esd" else position[prompt]
            there = edited(pipeline, teacher_ids, subject, count)
            pooled, teacher_pooled = student[:, here], teacher[:, there]
        text_losses.append(torch.nn.functional.mse_loss(pooled, teacher_pooled))
        if config.objective == "text-only":
            noise_losses.append(torch.zeros((), dtype=torch.float64))
            continue
        if config.objective == "attention":
            noise_losses.append(torch_attention.errors(layers, student[0], teacher[0]))
            apart.append(torch_attention.errors(layers, clean[0], teacher[0]))
            continue
        latents, noise = (
            torch.tensor(np.array(part[prompt], np.float64)).permute(2, 0, 1)[None]
            for part in (draw.latents, draw.noise)
        )
        t = int(draw.timesteps[prompt])
        signal, sigma = alphas[t] ** 0.5, (1 - alphas[t]) ** 0.5
        noisy = signal * latents + sigma * noise
        predicted = oracle.predict(noisy, t, student)
        with torch.no_grad():
            if config.objective == "sampled-noise":
                target = signal * noise - sigma * latents if velocity else noise
            elif config.objective == "esd":
                free = oracle.predict(noisy, t, teacher)
                target = free - config.esd_guidance * (oracle.predict(noisy, t, clean) - free)
            else:
                target = oracle.predict(noisy, t, teacher)
        noise_losses.append(torch.nn.functional.mse_loss(predicted, target))
    rows = (part.reshape(config.edited_tokens, -1) for part in (delta, h0))
    decay = config.weight_decay * sum(d.norm() / h.norm() ** 2 for d, h in zip(*rows, strict=True))
    noise, text = torch.stack(noise_losses).mean(dim=0), torch.stack(text_losses).mean()
    if apart:
        noise = (noise / torch.stack(apart).mean(dim=0)).mean()
    return noise + decay + config.text_loss_scale * text, noise, text, decay


@pytest.mark.parametrize(
    ("name", "prediction", "one_by_one", "tokens", "count"),
    [
        pytest.param("ablate-dest", "epsilon", False, 0, 1, marks=pytest.mark.slow),
        pytest.param("ablate-dest", "epsilon", False, 12, 1, marks=pytest.mark.slow),
        ("ablate-dest", "epsilon", False, 20, 4),
        pytest.param("ablate-source", "v_prediction", True, 0, 1, marks=pytest.mark.slow),
        pytest.param("sampled-noise", "epsilon", False, 0, 1, marks=pytest.mark.slow),
        ("sampled-noise", "v_prediction", False, 0, 1),
        ("esd", "epsilon", True, 0, 1),
        pytest.param("esd", "epsilon", False, 20, 3, marks=pytest.mark.slow),
        ("text-only", "epsilon", False, 0, 1),
        ("text-only", "epsilon", False, 0, 2),
        ("attention", "epsilon", False, 0, 1),
    ],
)
def test_loss_and_gradient_equal_pytorch(
    name, prediction, one_by_one, tokens, count, pipeline, oracle, prompts
):
    schedule = dataclasses.replace(pipeline.schedule, prediction_type=prediction)
    pipeline = dataclasses.replace(pipeline, schedule=schedule)
    # Weights that let no part of the loss hide behind another.
    config = StageOneConfig(
        layer=LAYER,
        objective=name,
        weight_decay=0.7,
        text_loss_scale=0.3,
        esd_guidance=1.5,
        text_tokens=tokens,
        edited_tokens=count,
    )
    source, destination = prompts
    read = slice(tokens or None)
    draw = Draw(*map(jnp.asarray, random_draw(pipeline)))
    images = np.zeros((2, 1, 2, 16, 16, 3), np.float32)
    inputs = prepare(pipeline, source, destination, [0, 1], images, config)
    inputs = jax.tree.map(jnp.asarray, inputs)

    params = pipeline.params
    if name == "attention":
        params = run.model_params(pipeline, config)

    @jax.jit
    def evaluate(delta):
        sample = None
        if name == "attention":
            sample = loss.wanted(pipeline, params, inputs, config)
        elif name != "text-only":
            sample = loss.make_sample(pipeline, params, inputs, draw, config)
        return loss.loss_and_gradient(pipeline, params, inputs, delta, sample, config, one_by_one)

    random = np.random.default_rng(1).standard_normal(inputs.h0.shape).astype(np.float32)

    for delta in (0.3 * random, np.zeros_like(random)):
        parts, gradient = evaluate(delta)
        assert np.isfinite(gradient).all()
        for i in range(2):
            ours = torch.tensor(delta[i], dtype=torch.float64, requires_grad=True)
            expected = torch_loss(
                oracle,
                pipeline,
                source.ids[i, :, read],
                destination.ids[i, :, read],
                POSITION[i],
                MASK[i],
                Draw(*(part[i] for part in draw)),
                ours,
                torch.tensor(np.array(inputs.h0[i], np.float64)),
                config,
            )
            expected[0].backward()
            got = [part[i] for part in parts]
            wanted = [float(part.detach()) for part in expected]
            np.testing.assert_allclose(got, wanted, rtol=TOLERANCE)
            wanted_gradient = ours.grad.numpy()
            difference = np.abs(gradient[i] - wanted_gradient).max()
            assert difference <= TOLERANCE * np.abs(wanted_gradient).max()
            assert np.abs(wanted_gradient).max() > 0


def test_zero_weights_switch_parts_off(pipeline, prompts):
    config = StageOneConfig(
        layer=LAYER, objective="text-only", weight_decay=0.0, text_loss_scale=0.0
    )
    inputs = prepare(pipeline, *prompts, [0, 1], None, config)
    inputs = jax.tree.map(jnp.asarray, inputs)
    delta = jnp.ones_like(inputs.h0)

    @jax.jit
    def evaluate(delta):
        return loss.loss_and_gradient(pipeline, pipeline.params, inputs, delta, None, config)

    parts, gradient = evaluate(delta)
    np.testing.assert_array_equal(parts.total, 0)
    np.testing.assert_array_equal(gradient, 0)
    assert (np.asarray(parts.text) > 0).all()
