"""Stage I over all requests of a run: in chunks, each filed in the bank when it is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.concepts.templates import fill
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.bank.concepts import Concept
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.encoder.whole_prompts import WIDTH_STEP
from emcid_jax.editing.stage_one import edited_tokens, loss, training_images
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_one.adam_loop import StageOneResult
from emcid_jax.editing.stage_one.concept_batch import ConceptBatch
from emcid_jax.editing.stage_one.loss import StageOneInputs
from emcid_jax.editing.stage_one.run import Program
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel, preemption
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums
from emcid_jax.workflow import profile
from emcid_jax.workflow.workdir import Run

IMAGE_BATCH = 16
"""Most training images that a device draws at once; fewer of more than 512 x 512 pixels."""


POOR = 0.5
"""Share of the held-out loss left from which on a memory is told of."""
SHOWN = 5
"""Names in a warning."""


class Prompts(NamedTuple):
    """The requests' prompts, as tokens."""

    source: PromptRectangle
    destination: PromptRectangle


def read_prompts(
    pipeline: Pipeline, requests: Sequence[EditRequest], config: StageOneConfig
) -> Prompts:
    """Tokens and subject positions; UserError with a line for everything that does not fit."""
    _require_single(requests)
    training_images.check_files(
        [request.image_paths for request in requests],
        [len(request.templates) for request in requests],
        [request.origin for request in requests],
        config,
    )
    prompts = Prompts(
        spans.source_prompts(pipeline.encoder.tokenizer, requests),
        spans.destination_prompts(pipeline.encoder.tokenizer, requests),
    )
    _check_lengths(pipeline, requests, prompts, config)
    return prompts


def find_memories(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    prompts: Prompts,
    config: StageOneConfig,
    model: Mapping[str, str],
    folder: Path,
    run: Run,
) -> list[Memory]:
    """The memory of every request: from the bank in `folder`, or found and filed there.

    Equal chunks of at most `save_every` requests are done as a whole, with one compiled program
    for all of them: a run that was killed computes the very batches that it would have, hence the
    same bits. `run.profile` says which chunks are traced, see `profile`.
    """
    _require_single(requests)
    _check_lengths(pipeline, requests, prompts, config)  # An ablation's settings may be others.
    prompts = read_for(pipeline, prompts, config)
    records = [bank.provenance(request, config, model) for request in requests]
    chunk = parallel.even_chunk(len(requests), run.config.save_every)
    asked = {"chunk": chunk, "devices": run.mesh.size, "concept_batch": config.concept_batch}
    batch = earlier_batch([bank.read_details(folder, record) for record in records], asked)
    profile.require_steps(run.config.profile, -(-len(requests) // chunk))
    tracing = profile.profiled(run.config.profile, run.workdir / profile.FOLDER)
    program: Program | None = None
    memories: list[Memory] = []
    done = 0  # Chunks that this process has computed.
    bar = tqdm(total=len(requests), desc="Stage I", unit="concept", disable=not run.config.progress)
    with bar, tracing as step:
        for first in range(0, len(requests), chunk):
            rows = slice(first, min(first + chunk, len(requests)))
            found = _filed(folder, records[rows])
            if found is None:
                with preemption.finishing("this chunk of Stage I"), step(done):
                    began = time.perf_counter()
                    inputs = prepare_chunk(pipeline, requests, prompts, rows, config, run.mesh)
                    if program is None:
                        full = _resized(inputs, chunk)
                        program = stage_one.compile_program(pipeline, full, config, run.mesh, batch)
                    result = stage_one.optimise(pipeline, inputs, config, run.mesh, program)
                    found = _memories(result)
                    about = asked | {"batch": program.batch}
                    for record, memory in zip(records[rows], found, strict=True):
                        bank.write(folder, record, memory, about)
                    ends = (float(losses.total.mean()) for losses in (result.start, result.end))
                    start, end = ends
                    run.log.write(
                        "stage_one",
                        time.perf_counter() - began,
                        concepts=rows.stop,
                        held_out_start=start,
                        held_out_end=end,
                    )
                done += 1
                bar.set_postfix_str(f"held-out loss {start:.2g} -> {end:.2g}")
            memories += found
            bar.update(rows.stop - rows.start)
    tell_of_poor(requests, memories)
    return memories


def tell_of_poor(requests: Sequence[EditRequest], memories: Sequence[Memory]) -> None:
    """A warning, before anything is drawn, that names the memories which will do little."""
    pairs = zip(requests, memories, strict=True)
    poor = sorted((-memory.left, one.source) for one, memory in pairs if memory.left > POOR)
    if poor:
        worst = ", ".join(f"{name!r} ({-left:.0%})" for left, name in poor[:SHOWN])
        logging.warning(
            "%d of %d memories keep more than %.0f %% of their held-out loss, so their requests "
            "will do little: %s%s; more steps (stage_one.steps) or a longer offset "
            "(stage_one.clamp_norm_factor) may help",
            len(poor),
            len(requests),
            100 * POOR,
            worst,
            ", ..." if len(poor) > SHOWN else "",
        )


def add_to_bank(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    folder: Path,
    config: StageOneConfig,
    run: Run,
) -> int:
    """Adds requests to the bank in `folder`; Stage I runs for those without a memory there.

    Gives the number of those. UserError, before Stage I runs, if a request does not go with the
    bank's.
    """
    model = bank.model_hashes(pipeline)
    about = [bank.provenance(request, config, model) for request in requests]
    names = [bank.key(one) for one in about]
    concepts = [Concept(r, name) for r, name in zip(requests, names, strict=True)]
    concept_bank.require_addable(folder, concepts)
    missing = {n for n, one in zip(names, about, strict=True) if bank.read(folder, one) is None}
    plan = folder / f"adding-{bank.hash_of(names)[:16]}.json"
    planned = _planned(plan) | missing
    if planned:
        new = [r for r, name in zip(requests, names, strict=True) if name in planned]
        prompts = read_prompts(pipeline, new, config)
        checksums.write_json(plan, {"memories": sorted(planned)})
        find_memories(pipeline, new, prompts, config, model, folder, run)
    concept_bank.add(folder, concepts)
    plan.unlink(missing_ok=True)
    return len(missing)


def _planned(plan: Path) -> set[str]:
    """Memories that a killed call of the same requests set out to find.

    They are done in the same chunks, some of which are there already: so the bits are the same.
    """
    if not plan.exists():
        return set()
    return set(checksums.read_json(plan, "delete it")["memories"])


def _check_lengths(
    pipeline: Pipeline, requests: Sequence[EditRequest], prompts: Prompts, config: StageOneConfig
) -> None:
    """UserError with a line for every request whose prompts `config` has no room for."""
    origins = [request.origin for request in requests]
    for part in prompts:
        preparation.check_lengths(part, origins, pipeline.encoder.tokenizer.eos_token_id, config)


def _require_single(requests: Sequence[EditRequest]) -> None:
    """UserError if a request has several destinations: it has no memory of its own."""
    mixed = [request for request in requests if request.task == "debias"]
    if mixed:
        raise UserError(
            "\n".join(
                f"{request.origin}: task: 'debias' mixes memories by drawing images, which only "
                "the main job (task edit) does; run that, and merge its bank where you need it"
                for request in mixed
            )
        )


def read_for(pipeline: Pipeline, prompts: Prompts, config: StageOneConfig) -> Prompts:
    """`prompts` as the loss reads them: as pictures are drawn, or without padding."""
    if loss.needs_images(config):
        return prompts
    return without_padding(prompts, pipeline.encoder.tokenizer.eos_token_id, config)


def without_padding(prompts: Prompts, end: int, config: StageOneConfig) -> Prompts:
    """The tokens that losses without pictures read: attention is causal, so those behind change
    nothing. Of the padding the attention loss reads one token at least, which stands for all.

    The same for all requests, that one program may serve them. `end` is the end token's id.
    """
    last = max(
        int(edited_tokens.last_read(part, end, config.edited_tokens).max()) for part in prompts
    )
    width = parallel.padded_size(last + 1 + loss.reads_all(config), WIDTH_STEP)
    return Prompts(*(part._replace(ids=part.ids[..., :width]) for part in prompts))


def earlier_batch(
    details: Sequence[Mapping[str, Any]], asked: Mapping[str, int]
) -> ConceptBatch | None:
    """The batch of an earlier run of the same chunk, from what the bank says of its memories.

    What fits in memory may differ from one start to the next; the program must not.
    """
    batches = [about["batch"] for about in details if about.items() >= asked.items()]
    return ConceptBatch(*batches[0]) if batches else None


def _filed(folder: Path, records: Sequence[bank.Provenance]) -> list[Memory] | None:
    """The memories of a whole chunk, or None if one is missing."""
    memories = [bank.read(folder, record) for record in records]
    found = [memory for memory in memories if memory is not None]
    return found if len(found) == len(records) else None


def prepare_chunk(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    prompts: Prompts,
    rows: slice,
    config: StageOneConfig,
    mesh: jax.sharding.Mesh,
) -> StageOneInputs:
    """What Stage I reads of the requests `rows`, training images included."""
    chunk = requests[rows]
    source, destination = (PromptRectangle(*(part[rows] for part in p)) for p in prompts)
    images = _images(pipeline, chunk, source.ids.shape[1], config, mesh)
    seeds = [request.seed for request in chunk]
    behind = preparation.tokens_behind(prompts.source, pipeline.encoder.tokenizer.eos_token_id)
    return preparation.prepare(pipeline, source, destination, seeds, images, config, mesh, behind)


def _images(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    width: int,
    config: StageOneConfig,
    mesh: jax.sharding.Mesh,
) -> np.ndarray | None:
    """Training images [concept, sample, prompt, ...] of `width` prompts each, or None if unused."""
    if not loss.needs_images(config):
        return None
    if training_images.reads_files(config):
        paths = [request.image_paths for request in requests]
        return training_images.read(paths, width, pipeline.image_size, config)
    prompts = training_images.image_prompts(
        [_filled(request, request.source, width) for request in requests],
        [_filled(request, request.dests[0], width) for request in requests],
        config,
    )
    seeds = [request.seed for request in requests]
    batch = images_at_once(pipeline) * mesh.size
    return training_images.draw(pipeline, prompts, seeds, config, batch=batch, mesh=mesh)


def images_at_once(pipeline: Pipeline) -> int:
    """Training images that a device draws at once."""
    height, width = pipeline.image_size
    return max(1, min(IMAGE_BATCH, IMAGE_BATCH * 512 * 512 // (height * width)))


def _filled(request: EditRequest, name: str, width: int) -> list[str]:
    """The request's prompts about `name`; the first one pads them to `width`. No name, no words."""
    prompts = [fill(template, name).prompt if name else "" for template in request.templates]
    return prompts + prompts[:1] * (width - len(prompts))


def _resized(inputs: StageOneInputs, concepts: int) -> StageOneInputs:
    """The shapes of `inputs` for another number of concepts."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((concepts, *leaf.shape[1:]), leaf.dtype), inputs
    )


def _memories(result: StageOneResult) -> list[Memory]:
    """One record per concept."""
    start, end = (np.stack(part, axis=-1) for part in (result.start, result.end))
    parts = (result.z, result.delta, result.curve, start, end)
    return [Memory(*(np.asarray(part)[row] for part in parts)) for row in range(len(start))]
