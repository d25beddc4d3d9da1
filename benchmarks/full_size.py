"""`python -m benchmarks.full_size`: the parts of Stable Diffusion 1.4 against PyTorch, on this CPU.

Random weights of the published architecture go through one folder into both sides, float32. Both
use all cores and take turns; the fastest run counts. Takes a temporary folder of 4 GB.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import full_size_models, machine, results
from benchmarks.released import model
from benchmarks.results import Check, Row
from benchmarks.timing import take_turns
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.generate import generate, initial_noise
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline

DESCENT = 3
"""Gradients in one program: Stage I takes a hundred."""
RATE = 1e3
"""What a gradient is multiplied by, so that the next one is another."""
PROMPT = "a photo of a goldfish"
GUIDANCE = 7.5
TIME = 741
WIDTH = 77, 768
"""Tokens and size of a prompt's states."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per part and writes JSON. Returns 1 if the sides disagree, else 0."""
    options = _parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("side", "images", "steps", "repeats")}
    about = {"torch_threads": options.threads, "settings": settings, **machine.describe()}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        full_size_models.write(folder, options.side)
        pipe, pipeline = model.load(folder), load_pipeline(folder)
    print(results.HEADER)
    for part in options.parts:
        rows.append(_MEASURES[part](pipeline, pipe, options))
        print(results.line(rows[-1]), flush=True)
        results.write(options.output, rows, about)
    return int(any(not check.passed for row in rows for check in row.checks))


def _text(pipeline: Pipeline, pipe: Any, options: argparse.Namespace) -> Row:
    prompts = [f"{PROMPT}, number {i}" for i in range(32)]
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    params = {"params": pipeline.params["text_encoder"]}
    encoder: Any = pipeline.encoder.model
    encode = jax.jit(lambda params, ids: encoder.apply(params, ids).last_hidden_state)

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return pipe.text_encoder(torch.from_numpy(ids).long()).last_hidden_state.numpy()

    name = f"text encoder, {ids.size} tokens"
    return _row(
        name, theirs, lambda: np.asarray(encode(params, ids)), options, max(3, options.repeats)
    )


def _unet(pipeline: Pipeline, pipe: Any, options: argparse.Namespace) -> Row:
    latents, text = _inputs(pipeline, options)
    predict = jax.jit(pipeline.unet.apply)
    times = jnp.full(options.images, TIME)
    params = {"params": pipeline.params["unet"]}

    def theirs() -> np.ndarray:
        with torch.no_grad():
            arguments = model.nchw(latents), torch.tensor(TIME), torch.from_numpy(text)
            return pipe.unet(*arguments).sample.permute(0, 2, 3, 1).numpy()

    name = f"UNet, {options.images} of {options.side} x {options.side}"
    return _row(name, theirs, lambda: np.asarray(predict(params, latents, times, text)), options)


def _gradient(pipeline: Pipeline, pipe: Any, options: argparse.Namespace, steps: int) -> Row:
    """Forward and back to the text, step after step in one program, as Stage I asks for it."""
    latents, text = _inputs(pipeline, options)
    times = jnp.full(options.images, TIME)

    @jax.jit
    def descend(params: Any, text: jax.Array, latents: jax.Array) -> jax.Array:
        @jax.grad
        def gradient(text: jax.Array) -> jax.Array:
            output = pipeline.unet.apply({"params": params}, latents, times, text)
            return jnp.square(jnp.asarray(output)).mean()

        def step(text: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            found = gradient(text)
            return text - RATE * found, found

        return jax.lax.scan(step, text, length=steps)[1]

    def theirs() -> np.ndarray:
        states, found = torch.from_numpy(text), []
        for _ in range(steps):
            states = states.detach().requires_grad_()
            output = pipe.unet(model.nchw(latents), torch.tensor(TIME), states).sample
            found.append(torch.autograd.grad(output.square().mean(), states)[0])
            states = states - RATE * found[-1]
        return torch.stack(found).numpy()

    def ours() -> np.ndarray:
        return np.asarray(descend(pipeline.params["unet"], jnp.asarray(text), latents))

    called = "one call" if steps == 1 else f"{steps} steps of one program"
    size = f"{options.images} of {options.side} x {options.side}"
    return _row(f"UNet, {size}, and back to the text, {called}", theirs, ours, options)


def _decoder(pipeline: Pipeline, pipe: Any, options: argparse.Namespace) -> Row:
    latents = _inputs(pipeline, options)[0][:1]
    decode = jax.jit(functools.partial(pipeline.vae.apply, method="decode"))
    params = {"params": pipeline.params["vae"]}

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return pipe.vae.decode(model.nchw(latents)).sample.permute(0, 2, 3, 1).numpy()

    name = f"VAE decoder, one image of {8 * options.side} pixels"
    return _row(name, theirs, lambda: np.asarray(decode(params, latents)), options)


def _sampling(pipeline: Pipeline, pipe: Any, options: argparse.Namespace) -> Row:
    seeds = list(range(options.images))
    prompts = [PROMPT] * len(seeds)
    noise = initial_noise(pipeline, seeds)

    def theirs() -> np.ndarray:
        drawn = model.draw(pipe, prompts, noise, options.steps, GUIDANCE)
        return drawn.astype(np.float32)

    def ours() -> np.ndarray:
        drawn = generate(
            pipeline,
            prompts,
            seeds,
            steps=options.steps,
            guidance=GUIDANCE,
            batch=options.images,
        )
        return drawn.astype(np.float32)

    name = f"sampling, {options.images} images, {options.steps} steps"
    return _row(name, theirs, ours, options, limit=1e-2)


def _row(
    name: str,
    theirs: Callable[[], np.ndarray],
    ours: Callable[[], np.ndarray],
    options: argparse.Namespace,
    repeats: int | None = None,
    limit: float = 1e-4,
) -> Row:
    """The two sides in turns, after ours has been compiled; PyTorch is warm from its second run."""
    ours()
    baseline, timed = take_turns(repeats or options.repeats, theirs, ours)
    expected = baseline.result
    error = float(np.abs(timed.result - expected).max() / np.abs(expected).max())
    check = Check("largest error / largest value", error, high=limit)
    return Row(name, "s", baseline.seconds, timed.seconds, 1.0, (check,))


def _inputs(pipeline: Pipeline, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    latents = initial_noise(pipeline, range(options.images))
    return latents, rng.standard_normal((options.images, *WIDTH)).astype(np.float32)


_MEASURES = {
    "text": _text,
    "unet": _unet,
    "gradient": functools.partial(_gradient, steps=1),
    "descent": functools.partial(_gradient, steps=DESCENT),
    "decoder": _decoder,
    "sampling": _sampling,
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_MEASURES, default=[*_MEASURES])
    parser.add_argument(
        "--side", type=int, default=64, help="size of the latents; 64 is 512 pixels"
    )
    parser.add_argument("--images", type=int, default=1, help="images per batch")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each; the fastest counts")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("full_size.json"), help="JSON file"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
