"""What Stage II knows of an encoder, resumed from the workdir, measured, or read back.

Second moments of keys, or statistics for concept units.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emcid_jax.config import MomentConfig, StageTwoConfig
from emcid_jax.editing.bank.memories import hash_of
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.captions import read_captions
from emcid_jax.editing.moments.second_moment import MomentProvenance, Progress, SecondMoments
from emcid_jax.editing.units import statistics
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.encoder import FIRST, SECOND, TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import parallel, preemption
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checkpoints
from emcid_jax.workflow.workdir import Run

MOMENTS, UNITS = "second_moments.safetensors", "units-{}.safetensors"
"""Names of the files; of units with the block."""
Measured = SecondMoments | UnitStatistics
Layers = Mapping[str, tuple[int, ...]]
"""Blocks by text encoder."""


def find_captions(config: MomentConfig) -> list[str]:
    """The captions that `config` names. UserError if they cannot be read."""
    if config.captions != "sprites":
        return read_captions(config.captions, config.count, config.seed)
    from emcid_jax.sprites.captions import sample_captions

    return [caption.text for caption in sample_captions(config.count, config.seed)]


def find_other_captions(config: MomentConfig, count: int) -> list[str]:
    """`count` captions of the same source by another seed, to measure on what C was not made of."""
    other = dataclasses.replace(config, count=count, seed=(config.seed + 1) % 2**32)
    return find_captions(other)


def edited_layers(config: StageTwoConfig, where: Sequence[Site]) -> Layers:
    """Layers that Stage II edits, by text encoder."""
    return {site.encoder: config.of(site.encoder).layers for site in where}


def moments_folder(
    workdir: Path, model: Mapping[str, str], captions: Sequence[str], layers: Layers
) -> Path:
    """Where `workdir` keeps the second moments that these inputs decide; others lie beside it.

    `model` are the base model's hashes, see `memories.model_hashes`.
    """
    first = layers.get(FIRST, ())
    decides = [model[FIRST], model["tokenizer"], list(captions), tuple(first)]
    if SECOND in layers:
        decides += [model[SECOND], model["tokenizer_2"], tuple(layers[SECOND])]
    return workdir / "moments" / hash_of(decides)[:16]


def require_linear(config: StageTwoConfig, field: str = "config.stage_two") -> None:
    """UserError if the solver is `units`, for tasks that read second moments; asked before work.

    `field` names the section in the task's settings.
    """
    if config.solver == "units":
        raise UserError(
            f"{field}.solver is 'units', of which this task tells nothing; give 'ridge', "
            "'ridge+preserve' or 'nullspace', or see report.units in the edit file"
        )


def moments_of(found: Measured) -> SecondMoments:
    """`found`, after `require_linear`."""
    assert isinstance(found, SecondMoments)
    return found


def find_measured(
    pipeline: Pipeline,
    captions: Sequence[str],
    stage_two: StageTwoConfig,
    layers: Layers,
    config: MomentConfig,
    folder: Path,
    run: Run,
) -> dict[str, Measured]:
    """What `stage_two.solver` reads of the encoders in `layers`, from `folder` or measured and
    filed there.

    Second moments are those of `layers`, statistics those of the block that gets units. `folder` is
    known to be for the same model and captions, see `find_moments`; what is of a second encoder
    lies in a folder of its name.
    """
    found: dict[str, Measured] = {}
    for encoder in pipeline.encoders:
        if encoder.name not in layers:
            continue
        place = _place(folder, encoder.name)
        if stage_two.solver == "units":
            block = stage_two.of(encoder.name).layers[-1]
            found[encoder.name] = _find_statistics(encoder, captions, block, config, place, run)
        else:
            found[encoder.name] = find_moments(
                encoder, list(captions), layers[encoder.name], config, place, run
            )
    return found


def read_measured(stage_two: StageTwoConfig, layers: Layers, folder: Path) -> dict[str, Measured]:
    """What `find_measured` filed in `folder`; writes nothing. UserError if it is not all there."""
    found: dict[str, Measured] = {}
    for name, own in layers.items():
        place = _place(folder, name)
        if stage_two.solver == "units":
            found[name] = statistics.read_statistics(place / UNITS.format(own[-1]))
        else:
            found[name] = second_moment.read_moments(place / MOMENTS)
    return found


def _place(folder: Path, encoder: str) -> Path:
    return folder if encoder == FIRST else folder / encoder


def _find_statistics(
    encoder: TextEncoder,
    captions: Sequence[str],
    block: int,
    config: MomentConfig,
    folder: Path,
    run: Run,
) -> UnitStatistics:
    path = folder / UNITS.format(block)
    if path.exists():
        return statistics.read_statistics(path)
    began = time.perf_counter()
    found = statistics.measure(
        encoder,
        captions,
        block,
        seed=config.seed,
        batch=config.batch,
        progress=run.config.progress,
    )
    statistics.write_statistics(path, found)
    run.log.write("unit_statistics", time.perf_counter() - began, captions=len(captions))
    return found


def find_moments(
    encoder: TextEncoder,
    captions: list[str],
    layers: tuple[int, ...],
    config: MomentConfig,
    folder: Path,
    run: Run,
) -> SecondMoments:
    """The second moments of `layers`, with progress and result kept under `folder`.

    A result that is already there is read: `folder` is known to be for the same inputs (that of the
    main job by its workdir's settings, else by its name, see `moments_folder`).
    """
    result = folder / MOMENTS
    if result.exists():
        moments = second_moment.read_moments(result)
        shutil.rmtree(folder / "progress", ignore_errors=True)  # As a kill may have left it.
        return moments
    start = _read_progress(folder / "progress")
    steps = second_moment.accumulate(
        encoder.model,
        encoder.params,
        tokenize(encoder.tokenizer, captions),
        layers,
        batch=config.batch,
        chunk=run.config.save_every_batches,
        start=start,
    )
    progress = start
    with tqdm(desc="Second moments", unit="batch", disable=not run.config.progress) as bar:
        while progress is None or progress.batches < progress.total:
            with preemption.finishing("these batches of captions"):
                began = time.perf_counter()
                progress = next(steps)
                if parallel.is_first():  # The others' workdirs are copies of its.
                    _write_progress(folder / "progress", progress)
                run.log.write("moments", time.perf_counter() - began, batches=progress.batches)
            bar.total = progress.total
            bar.update(progress.batches - bar.n)
    moments = second_moment.finish(progress)
    second_moment.write_moments(result, moments)
    shutil.rmtree(folder / "progress", ignore_errors=True)
    return moments


def _write_progress(folder: Path, progress: Progress) -> None:
    arrays = {str(layer): total for layer, total in progress.sums.items()}
    about: dict[str, Any] = progress._asdict()
    del about["sums"]
    about["provenance"] = dataclasses.asdict(progress.provenance)
    checkpoints.save(folder, progress.batches, arrays, about)


def _read_progress(folder: Path) -> Progress | None:
    saved = checkpoints.latest(folder)
    if saved is None:
        return None
    about = saved.metadata
    about["provenance"]["layers"] = tuple(about["provenance"]["layers"])
    provenance = MomentProvenance(**about.pop("provenance"))
    sums = {int(layer): total for layer, total in saved.arrays.items()}
    return Progress(sums=dict(sorted(sums.items())), provenance=provenance, **about)
