"""Task `quality`: what an edit left of everything else, and of artists; for any model and edit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from emcid_jax.config import EvaluationConfig, ModelConfig, RunConfig
from emcid_jax.diffusion.samplers import make_sampler
from emcid_jax.editing.bank.memories import hash_of, model_hashes
from emcid_jax.editing.export import edit_file
from emcid_jax.evaluation.benchmarks import artists, quality
from emcid_jax.evaluation.benchmarks.quality import QualityConfig
from emcid_jax.evaluation.drawing.both import Both
from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.evaluation.judges.lpips import load_lpips
from emcid_jax.pipelines.pipeline import with_text_params
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.open_model import open_model, read_edited
from emcid_jax.workflow.table import estimate


@dataclasses.dataclass(frozen=True)
class QualityTaskConfig:
    """Settings of this task."""

    task: str = "quality"
    """Which task of main runs."""
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    """The base model."""
    edited: str = ""
    """A `text_encoder` folder, or the workdir of an edit: captions that name one of its sources are
    then left out."""
    evaluation: EvaluationConfig = EvaluationConfig()  # noqa: RUF009 (frozen)
    """Sampler, batch and judge."""
    quality: QualityConfig = QualityConfig()  # noqa: RUF009 (frozen)
    """Captions and what reads their images."""
    artists: str = ""
    """A published `erased-*.csv`: the artists' benchmark runs, too."""
    lpips: str = ""
    """LPIPS (AlexNet) as a .safetensors file, for the artists; empty: CLIP scores alone."""
    run: RunConfig = RunConfig()  # noqa: RUF009 (frozen)

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        if self.lpips and not self.artists:
            raise UserError(
                f"config.lpips is {self.lpips!r}, but config.artists is empty; give an erased-*.csv"
            )


Config = QualityTaskConfig
UNREAD = (
    "model.export_dtype",
    "run.save_every",
    "run.save_every_batches",
    "run.profile",
    "evaluation.enabled",
    "evaluation.prompts_per_request",
    "evaluation.holdout",
    "evaluation.aliases",
    "evaluation.holdout_path",
    "evaluation.debias_seeds",
    "evaluation.debias_images",
)
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("quality.json", "quality.md", "evaluation", "images")
"""What the task writes in its workdir."""
LOOK = "quality.md"
"""Which of it to open first."""


def run(config: QualityTaskConfig, workdir: Path) -> None:
    """Writes `workdir/quality.json` and `quality.md`; goes on where a killed run stopped.

    UserError, before anything is written, if captions, models or evaluators are unfit.
    """
    folders.require_writable(workdir, WRITES, config)
    captions = quality.read_captions(config.quality, _sources(config.edited))
    asked = artists.read_artists(Path(config.artists)) if config.artists else None
    lpips = load_lpips(Path(config.lpips)) if config.lpips else None
    base = open_model(config.model, config.run.weight_shards)
    make_sampler(base.scheduler_config, config.evaluation.steps)  # Refuses before any work.
    edited = with_text_params(base, read_edited(config.edited, base, "config.edited"))
    folder = Path(config.evaluation.judge) if config.evaluation.judge else base.folder / "judge"
    named = bool(config.evaluation.judge)
    judge = load_judge(folder) if named or folder.is_dir() else None
    evaluators = quality.load_evaluators(config.quality, base, judge)
    with folders.running(config.run, workdir, WRITES) as run:
        models = Both(base, edited, hash_of(model_hashes(base)), run.mesh)
        found: dict[str, Any] = {
            "quality": quality.evaluate(
                captions,
                models,
                evaluators,
                config.evaluation,
                workdir,
                progress=run.config.progress,
            )
        }
        if asked:
            found["artists"] = artists.evaluate(
                asked,
                models,
                evaluators.clip,
                lpips,
                config.evaluation,
                workdir,
                progress=run.config.progress,
            )
        folders.write_json(workdir / "quality.json", found)
        write_atomically(workdir / "quality.md", table(found).encode())


def table(found: dict[str, Any]) -> str:
    """Markdown: a line per figure, before, after and the change."""
    lines = ["| figure | before | after | change |", "|---|---|---|---|"]
    clip, fid = (found["quality"][name] for name in ("clip_score", "fid"))
    cells = " | ".join(estimate(clip[name]) for name in ("before", "after", "change"))
    lines.append(f"| CLIP score, {found['quality']['captions']} captions | {cells} |")
    name = found["quality"]["features"]["name"]
    lines.append(f"| FID of the edited model against the base ({name}) | | | {fid['change']:.2f} |")
    if fid["before"] is not None:
        change = fid["after"] - fid["before"]
        cells = f"{fid['before']:.2f} | {fid['after']:.2f} | {change:+.2f}"
        lines.append(f"| FID against {found['quality']['real']} real pictures | {cells} |")
    if "artists" in found:
        before, after = (found["artists"]["clip"][name] for name in ("before", "after"))
        for key, label in (("clip_e", "CLIP_e"), ("clip_s", "CLIP_s"), ("h_a", "H_a")):
            change = after[key]["value"] - before[key]["value"]
            cells = f"{estimate(before[key])} | {estimate(after[key])} | {change:+.2f}"
            lines.append(f"| {label} | {cells} |")
        for key, label in (("lpips_e", "LPIPS_e"), ("lpips_u", "LPIPS_u")):
            if found["artists"]["lpips"]:
                lines.append(f"| {label} | | | {estimate(found['artists']['lpips'][key], 3)} |")
    return "\n".join(lines) + "\n"


def _sources(edited: str) -> list[str]:
    """Sources of the edit whose workdir this is; none of a bare folder."""
    path = Path(edited).expanduser() / "edit.safetensors"
    if not edited or not path.is_file():
        return []
    return [request["source"] for request in edit_file.read_ledger(path)[1]["requests"]]
