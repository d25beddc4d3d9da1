"""Task `plan`: what an edit will need and take on a machine, before there is one.

The programs are those that an edit runs. For TPUs and this machine's CPU they are compiled, without
weights; for a GPU they are traced and their cost is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emcid_jax.config import Count, ModelConfig, MomentConfig, Range, RunConfig, StageOneConfig
from emcid_jax.editing.encoder.sites import sites
from emcid_jax.editing.stage_one import loss, training_images
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch, needed_memory, refused_memory
from emcid_jax.editing.stage_one.loss import StageOneInputs
from emcid_jax.pipelines import abstract as architectures
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.planning import plan_table, tpu_topology, traced_programs
from emcid_jax.planning.machines import GIB, Target, find_target
from emcid_jax.planning.plan_table import Part, PartName
from emcid_jax.runtime import parallel, program_cost
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.program_cost import Cost
from emcid_jax.runtime.terminal import show
from emcid_jax.sprites.bundled import BUNDLED
from emcid_jax.workflow import environment
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.find_memories import images_at_once
from emcid_jax.workflow.open_model import as_held, find_folder

TURNS = 10_000
"""Steps that Stage I is counted at: enough that its loop is the one in which most is done."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Settings of this task."""

    task: Literal["plan"] = "plan"
    """Which task of main runs."""
    target: str = "v5e:2x4"
    """`<TPU generation>:<chips along each axis>`, e.g. `v6e:2x4`, `tpu7x:2x2x1`; `h200`; `cpu`."""
    model: ModelConfig = ModelConfig(path="sd-1.4", dtype="bfloat16")  # noqa: RUF009 (frozen)
    """`model.path`: also `sd-1.4`, `sd-1.5`, `sd-2.1-base`, `sd-2.1`, `sdxl-base`, or a folder that
    has no more than the JSON files."""
    concepts: Count = 1000
    """Length of the list."""
    prompts: Count = 3
    """Templates of a request."""
    parts: tuple[PartName, ...] = ("stage_one", "images", "moments")
    """What is planned: Stage I, drawing its training images, second moments."""
    utilisation: Annotated[float, Range(0.01, 1.0)] = 0.4
    """Share of the chip's peak rate that the time is predicted for."""
    weight_shards: Count = 1
    """As `run.weight_shards` of the planned run."""
    effort: Annotated[float, Range(-1.0, 1.0)] = -1.0
    """How hard the TPU compiler tries: 0 is what runs use, -1 is several times as fast."""
    stage_one: StageOneConfig = StageOneConfig()  # noqa: RUF009 (frozen)
    moments: MomentConfig = MomentConfig()  # noqa: RUF009 (frozen)

    def check(self) -> None:
        """UserError if the target is not known or shares no weights, or nothing is planned."""
        devices = find_target(self.target).devices
        if devices % self.weight_shards:
            raise UserError(
                f"config.weight_shards is {self.weight_shards}, but config.target "
                f"{self.target!r} has {devices} device{'s' if devices > 1 else ''}; give a number "
                "that divides them"
            )
        if not self.parts:
            raise UserError("config.parts is empty; give stage_one, images or moments")


Config = PlanConfig
UNREAD = (
    "model.export_dtype",
    "moments.captions",
    "moments.seed",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("plan.json",)
"""What the task writes in its workdir."""


class Built(NamedTuple):
    """A program for the target, compiled or counted."""

    bytes_needed: int
    collectives: dict[str, int] | None = None
    seconds: float | None = None


def run(config: PlanConfig, workdir: Path) -> None:
    """Prints the plan and leaves it in `workdir/plan.json`."""
    folders.require_writable(workdir, WRITES, config)
    target = find_target(config.target)
    mesh = mesh_of(target, config.weight_shards)
    pipeline = open_abstract(config.model)
    sites(config.stage_one, pipeline.texts)  # Refuses blocks that are not there.
    parts = [part for name in config.parts for part in _PARTS[name](config, pipeline, target, mesh)]
    with folders.exclusive(workdir, WRITES):
        folders.write_json(workdir / "plan.json", report(config, target, parts))
    show("\n".join(_lines(config, pipeline, target, parts)))


def mesh_of(target: Target, weight_shards: int = 1) -> Mesh:
    """Devices to compile for; for a GPU, one to trace on."""
    if target.kind == "tpu":
        return tpu_topology.tpu_mesh(target, weight_shards)
    tpu_topology.set_environment()  # JAX loads libtpu if it is there, whatever for.
    return parallel.make_mesh(jax.devices("cpu")[:1])


def open_abstract(config: ModelConfig) -> Pipeline:
    """The model's shapes; weights are not read, and need not be there if the name is a folder."""
    path: str | Path = config.path
    if path not in architectures.NAMES:
        folder = Path(path).expanduser()
        path = folder if path != BUNDLED and folder.is_dir() else find_folder(config)
    pipeline = architectures.abstract_pipeline(path, jnp.dtype(config.dtype))
    return dataclasses.replace(pipeline, params=as_held(config, pipeline.params))


def plan_stage_one(
    config: PlanConfig, pipeline: Pipeline, target: Target, mesh: Mesh
) -> Iterator[Part]:
    """Stage I with the largest batch that fits, as `run.compile_program` chooses it."""
    settings = config.stage_one
    inputs = traced_programs.stage_one_inputs(pipeline, config.concepts, config.prompts, settings)
    memory = int(stage_one.MEMORY_SHARE * target.chip.memory)

    @functools.cache
    def estimated(batch: ConceptBatch) -> int:
        return stage_one.estimated_memory(pipeline, inputs, settings, mesh, batch, target.devices)

    if target.kind == "gpu":
        batch = stage_one.choose_batch(
            estimated, estimated, inputs, settings, target.devices, memory
        )
        built = Built(estimated(batch))
    else:
        with _compiling("stage_one", target):
            program = stage_one.compile_program(
                pipeline, inputs, settings, mesh, memory=memory, options=_options(config, target)
            )
        batch = program.batch
        text = program.run.as_text()  # pyright: ignore[reportFunctionMemberAccess]
        built = Built(program.bytes_per_device, program_cost.collectives(text), program.seconds)
    whole, step = stage_one_cost(pipeline, config)
    runs = -(-config.concepts // batch.concepts)
    total = Cost(0.0, 0.0).plus(whole, runs * batch.concepts)
    yield _part(
        config,
        target,
        built,
        name="stage_one",
        unit="concepts",
        count=config.concepts,
        batch=batch.concepts,
        total=total,
        one_by_one=batch.one_by_one,
        details={
            "flops_per_concept_step": step.flops,
            "bytes_per_concept_step": step.bytes,
            "bytes_per_concept_between_hosts": result_bytes(inputs, settings),
        },
    )


def result_bytes(inputs: StageOneInputs, config: StageOneConfig) -> int:
    """Of what Stage I finds for one concept, which every host gets from the one that found it."""
    states, losses = 3 * inputs.h0.shape[1], 2 * len(loss.Losses._fields)
    return jnp.dtype(jnp.float32).itemsize * (states + config.steps + losses)


def stage_one_cost(pipeline: Pipeline, config: PlanConfig) -> tuple[Cost, Cost]:
    """What one concept costs, and one of its steps."""
    settings = config.stage_one
    pool = min(settings.teacher_pool, settings.steps)
    many = dataclasses.replace(settings, steps=TURNS, teacher_pool=pool)
    inputs = traced_programs.stage_one_inputs(pipeline, 1, config.prompts, settings)
    mesh = parallel.make_mesh(jax.devices("cpu")[:1])
    jaxpr = stage_one.trace(pipeline, inputs, many, mesh, ConceptBatch(1)).jaxpr.jaxpr
    turns, step = program_cost.main_loop(jaxpr)
    return program_cost.cost(jaxpr).plus(step, settings.steps - turns), step


def plan_images(
    config: PlanConfig, pipeline: Pipeline, target: Target, mesh: Mesh
) -> Iterator[Part]:
    """Drawing Stage I's training images."""
    settings = config.stage_one
    count = config.concepts * config.prompts * settings.samples_per_prompt
    if not loss.needs_images(settings) or training_images.reads_files(settings):
        count = 0
    batch = images_at_once(pipeline) * target.devices
    program = traced_programs.trace_sampling(
        pipeline, batch, settings.image_steps, settings.image_guidance, mesh
    )
    yield _plan_program(config, target, program, "images", "images", count, batch)


def plan_moments(
    config: PlanConfig, pipeline: Pipeline, target: Target, mesh: Mesh
) -> Iterator[Part]:
    """Second moments of all blocks up to Stage I's, captions as long as they may be."""
    encoders = {encoder.name: encoder for encoder in pipeline.encoders}
    batch = parallel.padded_size(config.moments.batch, target.devices)
    for site in sites(config.stage_one, pipeline.texts):
        layers = tuple(range(site.layer + 1))
        program = traced_programs.trace_moments(encoders[site.encoder], layers, batch, mesh)
        count = config.moments.count
        part = _plan_program(config, target, program, "moments", "captions", count, batch)
        yield dataclasses.replace(part, encoder=site.encoder) if len(encoders) > 1 else part


_PARTS: Mapping[str, Callable[[PlanConfig, Pipeline, Target, Mesh], Iterator[Part]]] = {
    "stage_one": plan_stage_one,
    "images": plan_images,
    "moments": plan_moments,
}


def _plan_program(
    config: PlanConfig,
    target: Target,
    program: jax.stages.Traced,
    name: PartName,
    unit: str,
    count: int,
    batch: int,
) -> Part:
    """A program whose batch is given."""
    jaxpr = program.jaxpr.jaxpr
    if target.kind == "gpu":
        built = Built(program_cost.memory(jaxpr))
    else:
        lowered = program.lower()
        began = time.perf_counter()
        with _compiling(name, target):
            built = _compile(lowered, _options(config, target), began)
    total = Cost(0.0, 0.0).plus(program_cost.cost(jaxpr), -(-count // batch))
    return _part(config, target, built, name=name, unit=unit, count=count, batch=batch, total=total)


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any], began: float) -> Built:
    """Compiled, or what the compiler says was too much."""
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return Built(refused_memory(error), None, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    return Built(
        needed_memory(compiled), program_cost.collectives(compiled.as_text() or ""), seconds
    )


def _part(
    config: PlanConfig,
    target: Target,
    built: Built,
    *,
    name: PartName,
    unit: str,
    count: int,
    batch: int,
    total: Cost,
    one_by_one: bool = False,
    details: Mapping[str, float] | None = None,
) -> Part:
    rate = target.chip.flops["highest" if name == "moments" else config.model.dtype]
    seconds = max(total.flops / (rate * config.utilisation), total.bytes / target.chip.bandwidth)
    return Part(
        name,
        unit,
        count,
        batch,
        one_by_one,
        built.bytes_needed,
        target.chip.memory,
        total.flops,
        total.bytes,
        seconds / target.devices,
        built.collectives,
        built.seconds,
        details or {},
    )


@contextlib.contextmanager
def _compiling(name: str, target: Target) -> Iterator[None]:
    """Turns a compiler's failure into one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"config.target {target.name}: {name} does not compile: {reason}"
        ) from error


def _options(config: PlanConfig, target: Target) -> dict[str, Any]:
    """The compiler's options; only the TPU's knows the effort."""
    return {"exec_time_optimization_effort": config.effort} if target.kind == "tpu" else {}


def report(config: PlanConfig, target: Target, parts: Sequence[Part]) -> dict[str, Any]:
    """Content of `plan.json`."""
    return {
        "config": dataclasses.asdict(config),
        "target": target._asdict() | {"chip": target.chip._asdict()},
        "source": _source(config, target),
        "parts": [dataclasses.asdict(part) | {"fits": part.fits} for part in parts],
        "seconds": sum(part.seconds for part in parts),
        "environment": environment.describe(),
    }


def _source(config: PlanConfig, target: Target) -> str:
    """Where the plan's figures come from."""
    counted = "FLOPs and traffic counted on the programs' jaxprs"
    if target.kind == "gpu":
        return f"{counted}; memory estimated from them, nothing compiled; {target.chip.source}"
    effort = f" at effort {config.effort:g}" if target.kind == "tpu" else ""
    return f"memory and collectives of compiled programs{effort}; {counted}; {target.chip.source}"


def _lines(
    config: PlanConfig, pipeline: Pipeline, target: Target, parts: Sequence[Part]
) -> Iterator[str]:
    """The plan for a person."""
    height, width = pipeline.image_size
    yield (
        f"{config.model.path}, {height} x {width} pixels, {config.model.dtype}, on {target.name}: "
        f"{target.devices} x {target.chip.memory / GIB:.2f} GiB, "
        f"{plan_table.amount(target.chip.flops[config.model.dtype], 'FLOP/s')}"
    )
    yield from plan_table.table(parts)
    total = plan_table.duration(sum(part.seconds for part in parts))
    yield f"{config.concepts:,} concepts: {total} at {config.utilisation:.0%} of the peak rate"
    for part in parts:
        if part.name == "stage_one":
            flops, moved = (part.details[f"{x}_per_concept_step"] for x in ("flops", "bytes"))
            step = f"{plan_table.amount(flops, 'FLOP')}, {plan_table.amount(moved, 'B')}"
            yield f"a step of one concept: {step}"
            result = part.details["bytes_per_concept_between_hosts"] / 1e3
            yield (
                f"between hosts: {result:.1f} kB per concept, {3 * height * width / 1e3:.1f} kB "
                "per image of an evaluation; while a sweep's cell is measured none, then its row"
            )
            if part.batch > RunConfig().save_every:
                yield f"for that batch, run with --config.run.save_every={part.batch}"
    yield f"figures: {_source(config, target)}"
