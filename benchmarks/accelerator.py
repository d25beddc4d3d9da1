"""`python -m benchmarks.accelerator --minutes 8`: the programs of an edit on this machine's device.

Shapes are those of a published model, weights are made up. Each program is compiled, run once, and
then timed; the fastest run counts. Where PyTorch and diffusers are installed, the UNet runs there
in turns. Parts follow in order of importance; those for which no time is left are named. Prints a
table and writes JSON. On a CPU the bundled model takes the published one's place.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator_torch
from benchmarks.timing import take_turns, timed
from emcid_jax.config import ModelConfig, StageOneConfig
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch, needed_memory
from emcid_jax.editing.stage_two.ridge_on_device import device_ridge
from emcid_jax.pipelines.pipeline import Pipeline, conditioning_shapes
from emcid_jax.planning import traced_programs
from emcid_jax.planning.machines import CHIPS
from emcid_jax.runtime import parallel, program_cost
from emcid_jax.tasks.plan import open_abstract
from emcid_jax.workflow import environment

KINDS: Mapping[str, str] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H200": "h200",
}
"""How a device's kind begins -> its name among `machines.CHIPS`; of two the longer comes first."""
STEPS, PROMPTS, GUIDANCE, REPEATS = 10, 3, 7.5, 3
REQUESTS = 1000
"""Memories that Stage II writes."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One part."""

    name: str
    seconds: float
    unit: str
    """What it did `count` of."""
    count: int
    flops: float
    bytes_needed: int | None = None
    compile_seconds: float | None = None
    torch_seconds: float | None = None
    share_of_peak: float | None = None
    """Of the device's stated peak, where that is known."""


FORWARD, BACKWARD = "UNet", "UNet and gradient to the text"
Part = tuple[str, str, int, Callable[[], jax.stages.Traced]]
"""Name, unit, count, and what traces the program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures part after part until the time is over."""
    options = _parse(arguments)
    end = time.monotonic() + 60 * options.minutes
    device = jax.devices()[0]
    name = options.model or ("sprites" if device.platform == "cpu" else "sd-1.4")
    pipeline = open_abstract(ModelConfig(path=name, dtype=options.dtype))
    found: list[Measured] = []
    skipped: list[str] = []
    about = {"model": name, "dtype": options.dtype, "environment": environment.describe()}
    print(f"{name}, {options.dtype}, on {device.device_kind}\n{_HEADER}")
    for part, measure in _measures(pipeline, options):
        if time.monotonic() > end:
            skipped.append(part)
            continue
        measured = measure()
        peak = _peak(device.device_kind, "highest" if part == "moments" else options.dtype)
        if peak:
            share = measured.flops / measured.seconds / peak
            measured = dataclasses.replace(measured, share_of_peak=share)
        found.append(measured)
        print(_line(measured), flush=True)
        content = about | {"parts": [dataclasses.asdict(one) for one in found], "skipped": skipped}
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    if skipped:
        print(f"no time was left for {', '.join(skipped)}; give more --minutes")
    return 0


def _measures(
    pipeline: Pipeline, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """Every part's name, and what measures it."""
    for part in _programs(pipeline, options):
        yield part[0], functools.partial(_measure, part, pipeline, options.dtype)
    yield "Stage II", functools.partial(_stage_two, pipeline)


def _programs(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Part]:
    concepts, images, captions = options.concepts, options.images, options.captions
    mesh = parallel.make_mesh(jax.devices()[:1])
    settings = StageOneConfig(layer=_layer(pipeline), steps=STEPS, concept_batch=concepts)
    inputs = traced_programs.stage_one_inputs(pipeline, concepts, PROMPTS, settings)
    loop = functools.partial(
        stage_one.trace, pipeline, inputs, settings, mesh, ConceptBatch(concepts)
    )
    yield "Stage I", "concept steps", concepts * STEPS, loop
    forward = functools.partial(_unet, pipeline, images, gradient=False)
    yield FORWARD, "images", images, forward
    backward = functools.partial(_unet, pipeline, images, gradient=True)
    yield BACKWARD, "images", images, backward
    drawing = functools.partial(
        traced_programs.trace_sampling, pipeline, images, STEPS, GUIDANCE, mesh
    )
    yield f"drawing, {STEPS} steps", "images", images, drawing
    yield "VAE decoder", "images", images, functools.partial(_decoder, pipeline, images)
    layers = tuple(range(settings.layer + 1))
    moments = functools.partial(
        traced_programs.trace_moments, pipeline.encoder, layers, captions, mesh
    )
    yield "moments", "captions", captions, moments


def _unet(pipeline: Pipeline, images: int, *, gradient: bool) -> jax.stages.Traced:
    """A prediction, or the gradient of its mean square with respect to the text's tokens."""

    def predict(params: Any, latents: Any, times: Any, text: Any) -> Any:
        return pipeline.unet.apply({"params": params}, latents, times, *text)

    def error(tokens: Any, params: Any, latents: Any, times: Any, text: Any) -> jax.Array:
        found = predict(params, latents, times, text._replace(tokens=tokens))
        return jnp.square(jnp.asarray(found, jnp.float32)).mean()

    shape = jax.ShapeDtypeStruct
    latents = shape((images, *pipeline.latent_size), jnp.float32)
    inputs = latents, shape((images,), jnp.int32), conditioning_shapes(pipeline, images)
    params = pipeline.params["unet"]
    if gradient:
        return jax.jit(jax.grad(error)).trace(inputs[2].tokens, params, *inputs)
    return jax.jit(predict).trace(params, *inputs)


def _decoder(pipeline: Pipeline, images: int) -> jax.stages.Traced:
    def decode(params: Any, latents: Any) -> Any:
        return pipeline.vae.apply({"params": params}, latents, method="decode")

    latents = jax.ShapeDtypeStruct((images, *pipeline.latent_size), jnp.float32)
    return jax.jit(decode).trace(pipeline.params["vae"], latents)


def _measure(part: Part, pipeline: Pipeline, dtype: str) -> Measured:
    """Compiles and times one program, in turns with PyTorch where that has the same."""
    name, unit, count, trace = part
    traced = trace()
    compiling, compiled = timed(lambda: traced.lower().compile())
    fresh, other = _maker(traced.args_info), None
    if name in (FORWARD, BACKWARD):
        other = accelerator_torch.unet(pipeline, count, dtype, gradient=name == BACKWARD)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(1 + REPEATS):
        arguments, options = jax.block_until_ready(fresh(jnp.float32(1.0)))  # Some are donated.
        run = functools.partial(compiled, *arguments, **options)
        ours.append(timed(lambda run=run: jax.block_until_ready(run())).seconds)
        if other:
            theirs.append(timed(other).seconds)
    flops = program_cost.cost(traced.jaxpr.jaxpr).flops
    found = Measured(
        name, min(ours[1:]), unit, count, flops, needed_memory(compiled), compiling
    )  # The first run warms up.
    return dataclasses.replace(found, torch_seconds=min(theirs[1:])) if theirs else found


def _stage_two(pipeline: Pipeline) -> Measured:
    """One layer's solve for `REQUESTS` memories, refined on the device to float64."""
    config = pipeline.encoder.model.config
    keys, out, count = config.intermediate_size, config.hidden_size, REQUESTS
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2 * keys, keys)) / np.sqrt(2 * keys)
    moment = Moment(factor.T @ factor)
    given = rng.standard_normal((count, keys)), rng.standard_normal((count, out))

    def solve() -> Any:
        return device_ridge(*given, moment, np.ones(count), 100.0)

    solve()
    (found,) = take_turns(REPEATS, solve)
    flops = keys**3 / 3 + 2.0 * count * keys * (keys + out) + 2.0 * keys**2 * out
    return Measured("Stage II, one layer", found.seconds, "requests", count, flops)


def _maker(shapes: Any) -> Callable[[jax.Array], Any]:
    """Makes arrays of these shapes on the device: moderate numbers, no two alike; integers are 1.

    The phase is an argument, else the compiler computes all of it.
    """

    def one(phase: jax.Array, leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        places = jnp.arange(math.prod(leaf.shape), dtype=jnp.float32).reshape(leaf.shape)
        return (0.02 * jnp.sin(12.9898 * places + phase)).astype(leaf.dtype)

    return jax.jit(lambda phase: jax.tree.map(functools.partial(one, phase), shapes))


def _layer(pipeline: Pipeline) -> int:
    """Block L: the published one, or the last that there is."""
    return min(StageOneConfig().layer, pipeline.encoder.model.config.num_hidden_layers - 1)


def _peak(kind: str, precision: str) -> float | None:
    """The device's stated FLOP/s."""
    names = (name for begin, name in KINDS.items() if kind.startswith(begin))
    name = next(names, None)
    return CHIPS[name].flops[precision] if name else None


_HEADER = (
    f"{'':32}{'seconds':>9}{'each, ms':>10}{'TFLOP/s':>9}{'peak':>6}{'GiB':>7}"
    f"{'compiled, s':>12}{'PyTorch, s':>11}"
)


def _line(one: Measured) -> str:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    needed = None if one.bytes_needed is None else one.bytes_needed / 2**30
    return (
        f"{one.name:32}{one.seconds:9.3f}{1e3 * one.seconds / one.count:10.2f}"
        f"{one.flops / one.seconds / 1e12:9.3g}{shown(one.share_of_peak, '.0%'):>6}"
        f"{shown(needed, '.2f'):>7}{shown(one.compile_seconds, '.1f'):>12}"
        f"{shown(one.torch_seconds, '.3f'):>11}"
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after that")
    parser.add_argument("--model", default="", help="as `plan` takes it; default: sd-1.4")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--concepts", type=int, default=8, help="of Stage I's batch")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--captions", type=int, default=256, help="of a batch")
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"), help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
