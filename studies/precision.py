"""`python -m studies.precision`: what computing in bfloat16 changes, against float32.

On the bundled model, whose weights mean something; with `--full` on random weights of Stable
Diffusion 1's size.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from benchmarks import workload
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.stage_one import loss, random_draws
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder

CONCEPTS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per result: largest error over largest value, and root mean squares."""
    options = _parse(arguments)
    print(f"{'bfloat16 against float32':44}{'max / max':>12}{'rms / rms':>12}")
    for name, rough, exact in _full(options.side) if options.full else _parts(_pair()):
        largest = np.abs(rough - exact).max() / np.abs(exact).max()
        mean = np.sqrt(np.square(rough - exact).mean() / np.square(exact).mean())
        print(f"{name:44}{largest:>12.2g}{mean:>12.2g}", flush=True)
    if not options.full:
        _images(_pair())
    return 0


def _pair() -> tuple[Pipeline, Pipeline]:
    """The bundled model, computing in bfloat16 and in float32."""
    exact = load_pipeline(model_folder(BUNDLED))
    return _in(jnp.bfloat16, exact), exact


def _in(dtype: DTypeLike, pipeline: Pipeline) -> Pipeline:
    return dataclasses.replace(
        pipeline,
        texts={name: model.clone(dtype=dtype) for name, model in pipeline.texts.items()},
        unet=UNet2DCondition(pipeline.unet.config, dtype),
        vae=AutoencoderKL(pipeline.vae.config, dtype),
    )


Result = tuple[str, np.ndarray, np.ndarray]
"""A name, and the value in bfloat16 and in float32."""


def _parts(pair: tuple[Pipeline, Pipeline]) -> Iterator[Result]:
    """The parts of the bundled model, and Stage I's loss and gradient."""
    exact = pair[1]
    config = StageOneConfig()
    edits = workload.edits(exact, CONCEPTS)
    ids = jnp.asarray(edits.source_tokens.ids[:, 0])
    states = [
        jax.jit(p.encoder.model.apply)({"params": p.params["text_encoder"]}, ids).last_hidden_state
        for p in pair
    ]
    yield "text states", *_float32(states)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((CONCEPTS, *exact.latent_size)), jnp.float32)
    times = jnp.linspace(0, 999, CONCEPTS).astype(jnp.int32)
    unets = [
        jax.jit(p.unet.apply)({"params": p.params["unet"]}, latents, times, states[1]) for p in pair
    ]
    yield "UNet", *_float32(unets)

    def vae(p: Pipeline, array: jax.Array, method: str) -> jax.Array:
        run = jax.jit(functools.partial(p.vae.apply, method=method))
        return jax.tree.leaves(run({"params": p.params["vae"]}, array))[0]

    decoded = [vae(p, latents, "decode") for p in pair]
    yield "VAE, decoded", *_float32(decoded)
    images = jnp.clip(decoded[1], -1, 1)
    yield "VAE, mean of the latents", *_float32([vae(p, images, "encode") for p in pair])

    seeds = [request.seed for request in edits.requests]
    training = np.repeat(
        np.asarray(images)[:, None, None], edits.source_tokens.ids.shape[1], axis=2
    )
    tokens = edits.source_tokens, edits.destination_tokens
    mesh = parallel.make_mesh(jax.devices()[:1])
    found = []
    for p in pair:
        inputs = preparation.prepare(p, *tokens, seeds, training, config, mesh)
        delta = np.random.default_rng(1).normal(0, 0.1, inputs.h0.shape).astype(np.float32)

        @jax.jit
        def gradient(params: Any, inputs: Any, delta: Any, p=p) -> Any:
            keys = random_draws.fold_in(random_draws.training_keys(inputs), 0)
            sample = loss.make_sample(p, params, inputs, random_draws.draw(p, inputs, keys), config)
            return loss.loss_and_gradient(p, params, inputs, delta, sample, config)

        found.append(gradient(p.params, inputs, delta))
    yield "Stage I, noise loss", *_float32([one[0].noise for one in found])
    yield "Stage I, gradient", *_float32([one[1] for one in found])
    rough, exact_gradient = (np.asarray(one[1], np.float64) for one in found)
    norms = np.linalg.norm(rough, axis=-1) * np.linalg.norm(exact_gradient, axis=-1)
    cosine = (rough * exact_gradient).sum(-1) / norms
    print(f"{'Stage I, cosine of the gradients: least':44}{cosine.min():>12.5f}")


def _images(pair: tuple[Pipeline, Pipeline]) -> None:
    """PSNR of whole images."""
    prompts = [row[0] for row in workload.edits(pair[1], CONCEPTS).source]
    drawn = [
        generate(p, prompts, range(CONCEPTS), steps=20, guidance=4.0).astype(float) for p in pair
    ]
    errors = np.square(drawn[0] - drawn[1]).mean((1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    print(f"{'images, 20 steps: PSNR in dB, least, median':44}{psnr.min():>12.1f}", end="")
    print(f"{np.median(psnr):>12.1f}")


def _full(side: int) -> Iterator[Result]:
    """Random weights of Stable Diffusion 1's size; latents of `side` x `side`."""
    configs = default_configs(1, "epsilon")
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    ids = jnp.asarray(rng.integers(0, 49408, (2, 77)))
    text = ClipTextConfig.from_dict(configs["text_encoder"])
    yield "text states", *_both(lambda d: ClipTextModel(text, d), ids)
    vae = VaeConfig.from_dict(configs["vae"])
    latents = normal(1, side, side, 4)
    yield "VAE, decoded", *_both(lambda d: AutoencoderKL(vae, d), latents, method="decode")
    pixels = jnp.tanh(normal(1, 8 * side, 8 * side, 3))
    yield (
        "VAE, mean of the latents",
        *_both(lambda d: AutoencoderKL(vae, d), pixels, method="encode"),
    )
    unet = UNetConfig.from_dict(configs["unet"])
    arguments = latents, jnp.array([741]), normal(1, 77, 768)
    yield "UNet", *_both(lambda d: UNet2DCondition(unet, d), *arguments)


def _both(make: Any, *inputs: jax.Array, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The first array that the module gives, in bfloat16 and in float32."""
    method = {"method": "__call__"} if "method" in options else {}
    start = (jnp.zeros((1, 64, 64, 3)),) if method else inputs
    variables = jax.jit(make(jnp.float32).init)(jax.random.key(0), *start)
    results = []
    for dtype in (jnp.bfloat16, jnp.float32):
        module = make(dtype)
        out = jax.jit(lambda v, *x, module=module: module.apply(v, *x, **options))(
            variables, *inputs
        )
        results.append(jax.tree.leaves(out)[0])
    return _float32(results)


def _float32(pair: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    rough, exact = (np.asarray(x, np.float32) for x in pair)
    return rough, exact


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studies.precision", description=__doc__)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1's size")
    parser.add_argument("--side", type=int, default=64, help="with --full: size of the latents")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
