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
from emcid_jax.config import Count, EditConfig
from emcid_jax.tasks import edit
from emcid_jax.workflow import environment
from emcid_jax.workflow import variant as trial
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.overrides import override

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
                    varied = dataclasses.replace(job, config=_varied(config.base, variant))
                    figures = _measure(trial.first(varied, count), workdir, log)
                    rows.append({"count": count, "variant": variant, **figures})
                    folders.write_json(path, {"rows": rows})
                    (workdir / "ablation.md").write_text(table(rows), "utf8")


def _varied(base: EditConfig, variant: str) -> EditConfig:
    """`base` with a variant's overrides; UserError names an unknown or unfit one."""
    values = dataclasses.asdict(base)
    override(values, variant, SECTIONS, "config.variants")
    return settings.from_config_dict(values, EditConfig)


def _measure(job: edit.Job, workdir: Path, log: folders.Log) -> dict[str, Any]:
    """The benchmark's aggregates and how far Stage II came, for one job."""
    edited, report = trial.written(job, workdir, log)
    result = trial.judged(job, edited, workdir / f"count-{len(job.requests)}")
    return {
        "aice": {name: metric._asdict() for name, metric in result.metrics.items()},
        "reached": [report.distance_before, report.distance_after],
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
