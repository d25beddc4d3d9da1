# ruff: noqa: RUF009 (sections of settings are frozen)
"""Task `bank`: add to, take from, merge, inspect and solve a concept bank.

`add` runs Stage I for what the bank has no memory of; `solve` writes the whole bank into the
pristine text encoder, `port` into that of a derived model, `conflicts` predicts what that will do.
No other operation loads a model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emcid_jax.config import (
    EncoderName,
    ModelConfig,
    MomentConfig,
    NotNegative,
    RequestsConfig,
    RunConfig,
    StageOneConfig,
    StageTwoConfig,
)
from emcid_jax.editing.bank import choice
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank.concepts import Concept, ConceptBank
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.diagnostics.predicted_conflicts import Prediction
from emcid_jax.editing.export import text_encoder
from emcid_jax.editing.stage_two import preservation
from emcid_jax.reporting.pages.text_space import conflicts_html
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.terminal import show
from emcid_jax.storage import ownership
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.bank_inputs import require_bank, solvable
from emcid_jax.workflow.find_memories import add_to_bank
from emcid_jax.workflow.find_moments import moments_of, require_linear
from emcid_jax.workflow.inputs import encoder_of, read_requests
from emcid_jax.workflow.open_model import open_model
from emcid_jax.workflow.port_bank import port
from emcid_jax.workflow.workdir import running
from emcid_jax.workflow.write_edit import write_edit

Operation = Literal[
    "list", "show", "diff", "add", "remove", "strength", "merge", "conflicts", "solve", "port"
]


@dataclasses.dataclass(frozen=True)
class BankConfig:
    """Settings of this task."""

    task: Literal["bank"] = "bank"
    """Which task of main runs."""
    operation: Operation = "list"
    """`list`, `show`, `diff` (to `other`), `add`, `remove`, `strength`, `merge` (`other` into the
    bank), `conflicts` (what solving will do, predicted), `solve`, or `port` (solve for a model
    derived from the bank's)."""
    bank: str = ""
    """The bank's folder, e.g. `runs/mine/bank`."""
    other: str = ""
    """`diff`, `merge`: folder of another bank."""
    names: tuple[str, ...] = ()
    """`show`, `remove`, `strength`: sources of the concepts meant."""
    query: str = ""
    """The same by pattern, e.g. `*shark*`, matched against source and destination."""
    strength: NotNegative = 1.0
    """`strength`: share of the offset that is written; 0 leaves a concept out of the edit."""
    keep: tuple[str, ...] = ()
    """`conflicts`: names that the edit should not change."""
    encoder: EncoderName = "text_encoder"
    """`conflicts`: which text encoder is looked at, of models with two."""
    requests: RequestsConfig = RequestsConfig()
    """`add`: what is added. `show`, `remove`, `strength`: the concepts meant, by file."""
    model: ModelConfig = ModelConfig()
    base: ModelConfig = ModelConfig()
    """`port`: the model that the memories were found with; `model` is the one derived from it."""
    edit: str = ""
    """`port`: the bank's edit file, applied as it is where the derived model allows it."""
    stage_one: StageOneConfig = StageOneConfig()
    moments: MomentConfig = MomentConfig()
    stage_two: StageTwoConfig = StageTwoConfig()
    run: RunConfig = RunConfig()

    def check(self) -> None:
        """Rules between fields; UserError names the field, the value and the fix."""
        require_bank(self.bank)
        if self.operation in ("diff", "merge") and not self.other:
            raise UserError(f"config.other is empty; {self.operation} takes a second bank's folder")
        if self.operation == "add" and not self.requests.path:
            raise UserError("config.requests.path is empty; give what to add")
        if self.operation == "conflicts":
            require_linear(self.stage_two)
        chosen = self.names or self.query or self.requests.path
        if self.operation in ("remove", "strength") and not chosen:
            raise UserError(
                "config.names, query and requests.path are empty; say which concepts operation "
                f"{self.operation} is for"
            )


Config = BankConfig
UNREAD = ("base.export_dtype", "run.profile")
"""Settings that the task has no use for: see `config.unread`."""
WRITES = (
    "config.json",
    "metrics.jsonl",
    "edit.safetensors",
    "text_encoder",
    "text_encoder_2",
    "conflicts.json",
    "conflicts.html",
    "port.json",
    "moments",
)
"""What the task writes in its workdir."""


def run(config: BankConfig, workdir: Path) -> None:
    """Does the operation. `solve` leaves its results in `workdir`; `add` logs there."""
    ownership.require_apart(workdir, folders.said(workdir))
    if config.operation in ("add", "remove", "strength", "merge"):
        concept_bank.require_usable(Path(config.bank))
    _OPERATIONS[config.operation](config, workdir)


def _list(config: BankConfig, workdir: Path) -> None:
    found = concept_bank.open_bank(Path(config.bank))
    for line in table(found):
        show(line)
    show(_count(found.concepts))


def _show(config: BankConfig, workdir: Path) -> None:
    found = concept_bank.open_bank(Path(config.bank))
    chosen = found.concepts
    if config.names or config.query or config.requests.path:
        chosen = _chosen(config, found.concepts)
    entries = [describe(found, concept) for concept in chosen]
    show(json.dumps(entries, indent=2, ensure_ascii=False))


def _diff(config: BankConfig, workdir: Path) -> None:
    ours, theirs = (concept_bank.read_list(Path(name)) for name in (config.bank, config.other))
    found = choice.diff(ours, theirs)
    show(json.dumps(found, indent=2, ensure_ascii=False))


def _remove(config: BankConfig, workdir: Path) -> None:
    folder = Path(config.bank)
    chosen = _chosen(config, concept_bank.read_list(folder))
    left = concept_bank.remove(folder, chosen)
    show(f"removed {len(chosen)}; {_count(left)}")


def _strength(config: BankConfig, workdir: Path) -> None:
    folder = Path(config.bank)
    chosen = _chosen(config, concept_bank.read_list(folder))
    concepts = concept_bank.set_strength(folder, chosen, config.strength)
    show(f"{len(chosen)} of strength {config.strength:g}; {_count(concepts)}")


def _merge(config: BankConfig, workdir: Path) -> None:
    show(_count(concept_bank.merge(Path(config.bank), Path(config.other))))


def _add(config: BankConfig, workdir: Path) -> None:
    folders.require_writable(workdir, WRITES, config)
    requests = read_requests(config.requests)
    pipeline = open_model(config.model, config.run.weight_shards)
    with running(config.run, workdir, WRITES) as run:
        new = add_to_bank(pipeline, requests, Path(config.bank), config.stage_one, run)
    total = concept_bank.read_list(Path(config.bank))
    show(f"ran Stage I for {new} of {len(requests)}; {_count(total)}")


def _solve(config: BankConfig, workdir: Path) -> None:
    text_encoder.require_replaceable(workdir / "text_encoder")
    with solvable(config, workdir, WRITES) as job:
        reports = write_edit(
            job.concepts,
            job.pipeline,
            job.model,
            job.moments,
            preservation.resolved(config.stage_two),
            config.model.export_dtype,
            job.run,
        )
    for name, report in reports.items():
        show(
            f"wrote {len(job.concepts.active)} concepts into {workdir / name}; distance to the "
            f"targets {report.distance_before:.4g} -> {report.distance_after:.4g}"
        )


def _conflicts(config: BankConfig, workdir: Path) -> None:
    with solvable(config, workdir, WRITES) as job:
        found = predicted_conflicts.predict(
            job.concepts,
            encoder_of(job.pipeline, config.encoder),
            job.where,
            moments_of(job.moments[config.encoder]),
            config.stage_two.of(config.encoder),
            config.keep,
        )
        folders.write_json(workdir / "conflicts.json", prediction_json(found))
        write_atomically(workdir / "conflicts.html", conflicts_html(found).encode())
    for line in prediction_table(found):
        show(line)
    show(f"all of it: {workdir / 'conflicts.json'}, to look at: {workdir / 'conflicts.html'}")


def _port(config: BankConfig, workdir: Path) -> None:
    found = port(config, workdir, WRITES)
    left = [one.left for one in found.reached]
    where = (
        f"blocks {list(found.difference.blocks)} differ"
        if found.difference.blocks
        else "same blocks"
    )
    show(
        f"{found.how} ({where}): {len(left)} concepts, distance to target: median "
        f"{np.median(left):.1%}, worst {max(left):.1%}; see {workdir / 'port.json'}"
    )


def table(found: ConceptBank) -> list[str]:
    """A line per concept, by source: strength, weight, offset, held-out loss, task, names."""
    lines = [f"{'strength':>8} {'weight':>6} {'|delta|':>8} {'loss':>21}  task     concept"]
    for concept in sorted(found.concepts, key=lambda concept: concept.request.source):
        memory, request = found.records[concept.memory].memory, concept.request
        loss = f"{memory.start[0]:.4g} -> {memory.end[0]:.4g}"
        lines.append(
            f"{concept.strength:8g} {request.weight:6g} {np.linalg.norm(memory.delta):8.3f} "
            f"{loss:>21}  {request.task:8} {request.source} -> {' | '.join(request.dests)}"
        )
    return lines


def describe(found: ConceptBank, concept: Concept) -> dict[str, Any]:
    """All that a bank knows about a concept but the vectors themselves, as JSON values."""
    record = found.records[concept.memory]
    memory = record.memory
    return {
        "request": dataclasses.asdict(concept.request),
        "strength": concept.strength,
        "memory": concept.memory,
        "delta_norm": float(np.linalg.norm(memory.delta)),
        "z_norm": float(np.linalg.norm(memory.z)),
        "loss_start": memory.start.tolist(),
        "loss_end": memory.end.tolist(),
        "steps": len(memory.curve),
        "provenance": record.provenance,
        "details": record.details,
        "code": record.code,
    }


def prediction_json(found: Prediction) -> dict[str, Any]:
    """A prediction as JSON values; of the key map the most similar part."""
    keys = predicted_conflicts.most_similar(found.keys)
    return {
        "contradictions": list(found.contradictions),
        "collisions": [pair._asdict() for pair in found.collisions],
        "kept": [neighbour._asdict() for neighbour in found.kept],
        "unmet": dict(found.unmet),
        "keys": keys._asdict() | {"cosines": keys.cosines.round(4).tolist()},
    }


def prediction_table(found: Prediction, most: int = 20) -> list[str]:
    """The worst of a prediction, a line each."""
    lines = list(found.contradictions[:most])
    lines += [
        f"collision: {' and '.join(map(repr, pair.sources))}: cosine of keys "
        f"{pair.similarity:.3f}, of targets {pair.targets:.2f}"
        for pair in found.collisions[:most]
    ]
    lines += [
        f"predicted drift of {near.name!r}: {near.drift:.2%}; nearest edit {near.nearest!r} "
        f"({near.similarity:.3f})"
        for near in found.kept[:most]
    ]
    lines += [
        f"predicted residual left of {name!r}: {share:.1%}" for name, share in found.unmet[:most]
    ]
    return lines


def _chosen(config: BankConfig, concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts meant; UserError if there is none."""
    requests = read_requests(config.requests) if config.requests.path else []
    chosen = choice.select(concepts, config.names, config.query, requests)
    if not chosen:
        raise UserError(
            f"config.query is {config.query!r} and config.requests.path "
            f"{config.requests.path!r}, which match no concept of {config.bank}"
        )
    return chosen


def _count(concepts: Sequence[Concept]) -> str:
    active = sum(concept.strength > 0 for concept in concepts)
    return f"{len(concepts)} concepts, {active} of strength > 0"


_OPERATIONS: dict[str, Callable[[BankConfig, Path], None]] = {
    "list": _list,
    "show": _show,
    "diff": _diff,
    "add": _add,
    "remove": _remove,
    "strength": _strength,
    "merge": _merge,
    "conflicts": _conflicts,
    "solve": _solve,
    "port": _port,
}
