"""Task `ablate`: one benchmark over many settings; memories and moments are shared between them.

A variant is a text of overrides, e.g. `stage_two.residual=released stage_two.moment_weight=1000.`;
the empty text is the base setting. Every (count, variant) that `ablation.json` holds already is
skipped, so the task resumes and can be widened.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from emcid_jax import config as settings
from emcid_jax import parallel
from emcid_jax.config import Count, EditConfig
from emcid_jax.editing import stage_two
from emcid_jax.evaluation.evaluate import evaluate
from emcid_jax.pipeline import with_text_params
from emcid_jax.tasks import edit, environment
from emcid_jax.tasks import workdir as folders
from emcid_jax.tasks.memories import find_memories
from emcid_jax.tasks.moments import find_moments
from emcid_jax.tasks.overrides import override

SECTIONS = ("stage_one", "stage_two")


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """Settings of this task."""

    base: EditConfig = EditConfig()
    """The setting that every variant changes."""
    task: str = "ablate"
    """Which task of main runs."""
    counts: tuple[Count, ...] = (10, 50, 100, 300)
    """Numbers of requests: the first so many of the file."""
    variants: tuple[str, ...] = ("",)
    """Overrides of stage_one and stage_two, separated by spaces."""

    def check(self) -> None:
        """UserError for an unfit base setting or variant."""
        self.base.check()
        for variant in self.variants:
            _varied(self.base, variant)


Config = AblateConfig


def run(config: AblateConfig, workdir: Path) -> None:
    """Fills `workdir/ablation.json` and `workdir/ablation.md`."""
    environment.use_compile_cache()
    folders.require_writable(workdir)
    path = workdir / "ablation.json"
    with folders.exclusive(workdir):
        rows: list[dict[str, Any]] = folders.read_json(path)["rows"] if path.exists() else []
        done = {(row["count"], row["variant"]) for row in rows}
        log = folders.Log(workdir / "metrics.jsonl")
        job = edit.prepare(config.base)
        for count in sorted(config.counts):
            for variant in config.variants:
                if (count, variant) not in done:
                    varied = _varied(config.base, variant)
                    figures = _measure(_first(job, varied, count), workdir, log)
                    rows.append({"count": count, "variant": variant, **figures})
                    folders.write_json(path, {"rows": rows})
                    (workdir / "ablation.md").write_text(table(rows), "utf8")


def _varied(base: EditConfig, variant: str) -> EditConfig:
    """`base` with a variant's overrides; UserError names an unknown or unfit one."""
    values = dataclasses.asdict(base)
    override(values, variant, SECTIONS, "config.variants")
    return settings.from_config_dict(values, EditConfig)


def _first(job: edit.Job, config: EditConfig, count: int) -> edit.Job:
    """The job of the first `count` requests under another setting."""
    prompts = job.prompts._replace(
        source=type(job.prompts.source)(*(part[:count] for part in job.prompts.source)),
        destination=type(job.prompts.destination)(
            *(part[:count] for part in job.prompts.destination)
        ),
    )
    return dataclasses.replace(job, config=config, requests=job.requests[:count], prompts=prompts)


def _measure(job: edit.Job, workdir: Path, log: folders.Log) -> dict[str, Any]:
    """The benchmark's aggregates and how far Stage II came, for one job."""
    config, pipeline, text = job.config, job.pipeline, job.pipeline.params["text_encoder"]
    memories = find_memories(
        pipeline, job.requests, job.prompts, config.stage_one, config.run, job.model,
        workdir / "bank", log,
    )  # fmt: skip
    every = tuple(range(pipeline.text.config.num_hidden_layers))
    moments = find_moments(
        pipeline, job.captions, every, config.moments, config.run, workdir / "moments", log
    )
    solved = edit.solve(job, memories, moments)
    edited = with_text_params(pipeline, stage_two.apply_edit(text, solved))
    assert job.judge is not None
    result = evaluate(
        job.requests,
        pipeline,
        edited,
        job.judge,
        config.evaluation,
        workdir / f"count-{len(job.requests)}",
        base_hash=edit.hash_of(job.model),
        mesh=parallel.make_mesh(),
        progress=config.run.progress,
    ).result
    return {
        "aice": {name: metric._asdict() for name, metric in result.metrics.items()},
        "reached": [solved.report.distance_before, solved.report.distance_after],
        "images": result.images,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per count and variant, one column per aggregate."""
    names = list(rows[0]["aice"])
    lines = ["| n | setting | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        values = [row["aice"].get(name, {}).get("value") for name in names]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append(f"| {row['count']} | {row['variant'] or 'base'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
