"""Task `sample`: draws prompts with a model, and beside it with an edited text encoder."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from emcid_jax.concepts.readers.located import number_in
from emcid_jax.concepts.readers.texts import PROMPT_COLUMNS, read_texts
from emcid_jax.config import Count, ModelConfig, NotNegative, RunConfig, Seed
from emcid_jax.diffusion.samplers import make_sampler, require_nothing_overruled
from emcid_jax.evaluation.drawing.kept_pictures import slug
from emcid_jax.evaluation.drawing.png import read_note
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.generate import image_batches
from emcid_jax.pipelines.pipeline import Pipeline, with_text_params
from emcid_jax.reporting.plots import sample_grids
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import Failures, UserError
from emcid_jax.runtime.terminal import show
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.open_model import open_model, read_edited

Scheduler = Literal["", "ddim", "pndm", "euler", "euler_ancestral"]
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler"},
    "pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler_ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
}


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """What is drawn, and how."""

    prompts: tuple[str, ...] = ()
    """Each prompt is drawn with each seed."""
    prompts_file: str = ""
    """File with further prompts: one a line, a JSON list, JSON lines, or a CSV with the column
    `prompt`. An entry with `evaluation_seed` beside it is drawn once, with its own seed."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of the initial noise."""
    negative: str = ""
    """Prompt to guide away from."""
    steps: Count = 20
    """Denoising steps."""
    guidance: NotNegative = 7.5
    """Strength of classifier-free guidance; at 1 there is none."""
    scheduler: Scheduler = ""
    """Sampler in place of the model's own; its noise schedule stays."""
    noise: Literal["numpy", "jax"] = "numpy"
    """Who draws the noise of a seed; NumPy's can be drawn again by any other program."""
    edited: str = ""
    """A `text_encoder` folder, or a workdir that holds one: drawn beside the model itself."""
    batch: Count = 8
    """Images per call; rounded up to a multiple of the devices."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Settings of this task."""

    task: Literal["sample"] = "sample"
    """Which task of main runs."""
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    sampling: SamplingConfig = SamplingConfig()
    run: RunConfig = RunConfig()  # noqa: RUF009 (frozen)

    def check(self) -> None:
        """UserError if there is nothing to draw."""
        if not self.sampling.prompts and not self.sampling.prompts_file:
            raise UserError(
                "config.sampling.prompts is empty; give prompts, e.g. "
                "--config.sampling.prompts=\"('a photo of a dog',)\", or a "
                "--config.sampling.prompts_file"
            )
        if not self.sampling.seeds:
            raise UserError("config.sampling.seeds is empty; give at least one")


Config = SampleConfig
UNREAD = (
    "model.export_dtype",
    "run.save_every",
    "run.save_every_batches",
    "run.profile",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("images", "images.csv", "grid-*.png")
"""What the task writes in its workdir."""


class Drawing(NamedTuple):
    """One image to draw."""

    model: str
    """`base` or `edited`."""
    prompt: str
    seed: int


def run(config: SampleConfig, workdir: Path) -> None:
    """Draws what is missing into `workdir/images`, and `images.csv` and labelled grids of it.

    A picture carries its settings; one that was drawn with others is drawn again. Rows of a CSV are
    in no grid.
    """
    folders.require_writable(workdir, WRITES, config)
    prompts, rows = read_prompts(config.sampling)
    asked = [(prompt, seed) for prompt in prompts for seed in config.sampling.seeds] + rows
    models = _models(config)
    with folders.running(config.run, workdir, WRITES) as run:
        files: dict[tuple[str, str, int], Path] = {}
        hashes: dict[str, str] = {}
        for name, pipeline in models.items():
            # The models share all parts but the text encoders.
            parts = pipeline.texts if hashes else pipeline.params
            hashes |= {part: params_hash(pipeline.params[part]) for part in parts}
            settings = _settings(config, pipeline) | {"model": dict(hashes)}
            wanted = [Drawing(name, *pair) for pair in dict.fromkeys(asked)]
            found = {drawing: path_of(workdir, drawing) for drawing in wanted}
            _draw_missing(config, pipeline, found, settings, run)
            files.update((d[:], path) for d, path in found.items())
        _write_list(workdir / "images.csv", files)
        grids = sample_grids.write_grids(
            workdir, files, prompts, config.sampling.seeds, list(models)
        )
        if parallel.is_first():
            where = ", ".join(str(workdir / name) for name in grids) or workdir
            show(f"{len(files)} images: {where}")


def read_prompts(config: SamplingConfig) -> tuple[list[str], list[tuple[str, int]]]:
    """Prompts in order, each once, and those of a file that have seeds of their own.

    UserError if the file is missing or holds none.
    """
    field = "config.sampling.prompts_file"
    prompts, rows = list(config.prompts), []
    failures = Failures(config.prompts_file)
    entries = read_texts(config.prompts_file, field, PROMPT_COLUMNS) if config.prompts_file else []
    for text, line, fields in entries:
        if "evaluation_seed" in fields:
            rows.append((text, number_in(fields, "evaluation_seed", line, failures)))
        else:
            prompts.append(text)
    failures.finish()
    if not prompts and not rows:
        raise UserError(f"{field}: {config.prompts_file} holds no prompt")
    return list(dict.fromkeys(prompts)), rows


def _models(config: SampleConfig) -> dict[str, Pipeline]:
    """The model, and the edited one if it is asked for."""
    pipeline = open_model(config.model, config.run.weight_shards)
    chosen = SCHEDULERS.get(config.sampling.scheduler, {})
    configs = {**pipeline.configs, "scheduler": {**pipeline.scheduler_config, **chosen}}
    make_sampler(configs["scheduler"], config.sampling.steps)  # refuses before anything is drawn
    if pipeline.family.joined:
        require_nothing_overruled(configs["scheduler"])
    pipeline = dataclasses.replace(pipeline, configs=configs)
    models = {"base": pipeline}
    if config.sampling.edited:
        edited = read_edited(config.sampling.edited, pipeline, "config.sampling.edited")
        models["edited"] = with_text_params(pipeline, edited)
    return models


def _settings(config: SampleConfig, pipeline: Pipeline) -> dict[str, Any]:
    """What an image depends on beside its prompt, its seed and the weights."""
    sampling = config.sampling
    return {
        "negative": sampling.negative,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "scheduler": dict(pipeline.scheduler_config),
        "noise": sampling.noise,
        "dtype": config.model.dtype,
    }


def path_of(workdir: Path, drawing: Drawing) -> Path:
    """Readable and safe, and different for prompts that look alike."""
    digest = hashlib.sha256(drawing.prompt.encode()).hexdigest()[:8]
    name = "-".join(part for part in (slug(drawing.prompt), digest) if part)
    return workdir / "images" / drawing.model / f"{name}-seed{drawing.seed}.png"


def _write_list(path: Path, files: Mapping[tuple[str, str, int], Path]) -> None:
    """Which picture shows what, for programs that look at them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "prompt", "seed", "file"])
    writer.writerows([*drawn, file.relative_to(path.parent)] for drawn, file in files.items())
    write_atomically(path, text.getvalue().encode())


def _draw_missing(
    config: SampleConfig,
    pipeline: Pipeline,
    files: Mapping[Drawing, Path],
    settings: Mapping[str, Any],
    run: folders.Run,
) -> None:
    """Draws every picture that is not there or was drawn with other settings."""

    def about(drawing: Drawing) -> str:
        said = {"prompt": drawing.prompt, "seed": drawing.seed, **settings}
        return json.dumps(said, sort_keys=True, ensure_ascii=True)

    missing = [d for d, path in files.items() if read_note(path) != about(d)]
    sampling = config.sampling
    batches = image_batches(
        pipeline,
        [drawing.prompt for drawing in missing],
        [drawing.seed for drawing in missing],
        steps=sampling.steps,
        guidance=sampling.guidance,
        negative=sampling.negative,
        batch=sampling.batch,
        mesh=run.mesh if run.mesh.size > 1 else None,
        noise=sampling.noise,
    )
    name = next(iter(files)).model
    with tqdm(total=len(files), desc=name, unit="image", disable=not run.config.progress) as bar:
        bar.update(len(files) - len(missing))
        left = iter(missing)
        for images in batches:
            for image, drawing in zip(images, left, strict=False):
                write_atomically(files[drawing], sample_grids.png(image, about(drawing)))
            bar.update(len(images))
