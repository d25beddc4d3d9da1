"""`python -m benchmarks.memory`: what each way of saving memory saves, at the size of SD 1.

Nothing is run: the figures are those of programs compiled for this machine's CPU.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emcid_jax.editing.stage_one.prompt_by_prompt import prompt_by_prompt
from emcid_jax.models.image import attention as image_attention
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig
from emcid_jax.models.kernels import attention
from emcid_jax.models.weights import params as weights
from emcid_jax.pipelines import generate
from emcid_jax.pipelines.published_configs import default_configs

SIDE, TOKENS, PROMPTS = 64, 77, 3
"""Latents of a 512-pixel image; tokens of a prompt; prompts of a concept."""
AT_ONCE = 2**40
CONFIGS = default_configs(1, "epsilon")
Program = tuple[str, Callable[..., Any], tuple[Any, ...], Any]
"""A name, the function, its abstract arguments, and what to change while it is compiled."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per program: parameters and inputs, temporaries, seconds to compile."""
    options = _parse(arguments)
    print(f"{'':58}{'arguments':>10}{'temporary':>10}  MiB, seconds to compile")
    for name, function, inputs, change in PARTS[options.part](jnp.dtype(options.dtype)):
        began = time.perf_counter()
        with change:
            # A new function, so that nothing traced before the change is taken.
            compiled = jax.jit(lambda *x, run=function: run(*x)).lower(*inputs).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        sizes = (analysis.argument_size_in_bytes, analysis.temp_size_in_bytes)
        figures = "".join(f"{size / 2**20:>10.0f}" for size in sizes)
        print(f"{options.dtype} {name:48}{figures}{time.perf_counter() - began:>8.0f}", flush=True)
    return 0


def _attention(dtype: DTypeLike) -> Iterator[Program]:
    """Self-attention of the UNet's first level, batch 2, and its gradient."""
    shape = jax.ShapeDtypeStruct((2, SIDE**2, 8, 40), dtype)
    ways: dict[str, tuple[Callable[..., jax.Array], int]] = {
        "jax.nn.dot_product_attention": (
            functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="xla"),
            AT_ONCE,
        ),
        "at once": (attention.attend_together, AT_ONCE),
    }
    for queries in (2048, 1024, 512, 256):
        ways[f"{queries} queries at a time"] = (attention.attend_together, queries * SIDE**2)
    ways["head by head, as on CPUs"] = (attention.attend, AT_ONCE)
    for name, (attend, scores) in ways.items():

        def total(q: Any, k: Any, v: Any, attend: Any = attend) -> jax.Array:
            return jnp.square(attend(q, k, v).astype(jnp.float32)).sum()

        for label, function in (("", attend), (", gradient", jax.grad(total, (0, 1, 2)))):
            change = mock.patch.object(attention, "SCORES", scores)
            yield f"attention, {name}{label}", function, (shape,) * 3, change


def _unet(dtype: DTypeLike) -> Iterator[Program]:
    """The UNet with guidance, and Stage I's pass from its error back to the text."""
    unet = UNet2DCondition(UNetConfig.from_dict(CONFIGS["unet"]), dtype)

    def inputs(batch: int) -> tuple[Any, ...]:
        shape = jax.ShapeDtypeStruct
        width = CONFIGS["text_encoder"]["hidden_size"]
        return (
            shape((batch, SIDE, SIDE, 4), jnp.float32),
            shape((batch,), jnp.int32),
            shape((batch, TOKENS, width), jnp.float32),
        )

    params = weights.abstract_params(unet, *inputs(1))

    def predict(params: Any, latents: Any, times: Any, text: Any) -> Any:
        return unet.apply({"params": params}, latents, times, text)

    def error(params: Any, latents: Any, times: Any, one_by_one: bool, text: Any) -> jax.Array:
        def values(text: Any, rows: Any) -> jax.Array:
            latents, times = rows
            found = predict(params, latents, times, text).astype(jnp.float32)
            return jnp.square(found - latents).sum(axis=(1, 2, 3))

        rows = (latents, times)
        found = prompt_by_prompt(values, text, rows, PROMPTS) if one_by_one else values(text, rows)
        return found.sum()

    ways = {
        "at once": attention._attend_at_once,
        "in chunks": attention.attend_together,
        "head by head": attention.attend,
    }
    for how, attend in ways.items():
        change = mock.patch.object(image_attention, "attend", attend)
        yield f"UNet, batch 2, attention {how}", predict, (params, *inputs(2)), change
        for one_by_one in (False, True):

            def gradient(p: Any, x: Any, t: Any, text: Any, single: bool = one_by_one) -> Any:
                return jax.grad(functools.partial(error, p, x, t, single))(text)

            kept = ", one by one" if one_by_one else ""
            change = mock.patch.object(image_attention, "attend", attend)
            name = f"gradient, {PROMPTS} prompts, {how}{kept}"
            yield name, gradient, (params, *inputs(PROMPTS)), change


def _vae(dtype: DTypeLike) -> Iterator[Program]:
    """Decoding of eight images; encoding of one."""
    vae = AutoencoderKL(VaeConfig.from_dict(CONFIGS["vae"]), dtype)
    pixels = jax.ShapeDtypeStruct((1, 8 * SIDE, 8 * SIDE, 3), jnp.float32)
    params = weights.abstract_params(vae, pixels)

    def decode(params: Any, latents: Any) -> jax.Array:
        return generate._decode(params, latents, vae, 1)[0]

    latents = jax.ShapeDtypeStruct((8, SIDE, SIDE, 4), jnp.float32)
    for images in (8, 4, 2, 1):
        change = mock.patch.object(generate, "SLICE", images * (8 * SIDE) ** 2)
        yield f"VAE, 8 images of 512 pixels, {images} at a time", decode, (params, latents), change
    for images in (1, 4):
        batch = jax.ShapeDtypeStruct((images, *pixels.shape[1:]), jnp.float32)
        encode = functools.partial(vae.apply, method="encode")
        change = mock.patch.object(attention, "SCORES", attention.SCORES)
        yield f"VAE, encoding {images} at once", encode, ({"params": params}, batch), change


PARTS = {"attention": _attention, "unet": _unet, "vae": _vae}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
