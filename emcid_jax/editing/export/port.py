"""One bank for a family of models: its memories written into a derived (fine-tuned) text encoder.

An edit of block L depends on tokenizer, embeddings and blocks up to L alone. Where a derived model
shares these, the edit is the same to the bit. Where it does not, keys and second moments are the
derived model's own, the memories are reused, and how well their targets are met is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics.targets_reached import Reach, reach
from emcid_jax.editing.export import edit_file
from emcid_jax.editing.export.edit_file import EditFile
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError


class Difference(NamedTuple):
    """Where a derived text encoder is not the base's, bit by bit."""

    tokenizer: bool
    embeddings: bool
    blocks: tuple[int, ...]
    """Blocks of other weights."""
    final_norm: bool

    def reaches(self, block: int) -> bool:
        """Whether an edit of this block, or of one below, comes out differently."""
        return self.tokenizer or self.embeddings or any(i <= block for i in self.blocks)


class Ported(NamedTuple):
    """A bank's edit of a derived model."""

    how: Literal["applied", "solved"]
    """The given edit as it is, or one solved for this model."""
    difference: Difference
    content: EditFile
    report: StageTwoReport
    moments: SecondMoments | UnitStatistics | None
    """What it was solved with."""
    reached: tuple[Reach, ...]
    """Per concept, on the derived model."""


def compare(base: Pipeline, derived: Pipeline) -> Difference:
    """Where the text encoders differ. UserError if one cannot be derived from the other, or if the
    models have several."""
    if len(base.texts) > 1:
        raise UserError(
            f"{base.folder}: has {len(base.texts)} text encoders, and operation 'port' takes one; "
            "add the requests to a new bank with the derived model"
        )
    if base.encoder.model.config != derived.encoder.model.config:
        raise UserError(
            f"{derived.folder}: its text encoder is of another kind than that of {base.folder}; "
            "add the requests to a new bank with this model"
        )
    old, new = (p.params["text_encoder"]["text_model"] for p in (base, derived))
    blocks = range(base.encoder.model.config.num_hidden_layers)
    return Difference(
        memories.tokenizer_hashes(base) != memories.tokenizer_hashes(derived),
        _differ(old["embeddings"], new["embeddings"]),
        tuple(
            i
            for i in blocks
            if _differ(old["encoder"][f"layers.{i}"], new["encoder"][f"layers.{i}"])
        ),
        _differ(old["final_layer_norm"], new["final_layer_norm"]),
    )


def port(
    concepts: ConceptBank,
    base: Pipeline,
    derived: Pipeline,
    config: StageTwoConfig,
    measure: Callable[[Pipeline], SecondMoments | UnitStatistics],
    edit: tuple[EditFile, Mapping[str, Any]] | None = None,
) -> Ported:
    """The bank's edit of `derived`.

    Args:
        concepts: the bank, whose memories were found with `base`.
        base: the model of the memories.
        derived: a model with a text encoder of the same kind.
        config: Stage II's settings, unless `edit` is applied.
        measure: gives the second moments of a model; called only to solve.
        edit: the bank's edit of `base` with its ledger; applied as it is where `derived` shares
            all that it depends on. Without it the bank is solved in any case.

    Raises:
        UserError: memories of another model than `base`, an edit that is not this bank's, a
            derived model of another kind, and what `bank.solve.solve` raises.
    """
    bank_solve.require_base(concepts, base)
    where = bank_solve.sites_of(concepts, base)
    difference = compare(base, derived)
    moments = None
    if edit is not None and not difference.reaches(where[0].layer):
        content, ledger = edit
        _require_same(concepts, base, ledger)
        report = edit_file.read_report(ledger)
    else:
        moments = measure(derived)
        measured = {FIRST: moments}
        solved = bank_solve.solve_relative(concepts, derived, measured, config)[FIRST]
        content, report = edit_file.pack(solved.deltas, solved.units), solved.report
    how = "solved" if moments else "applied"
    edited = apply(derived, content, report)
    reached = reach(concepts, derived.encoder, where, edited)
    return Ported(how, difference, content, report, moments, reached)


def apply(
    pipeline: Pipeline, content: EditFile, report: StageTwoReport, encoder: str = FIRST
) -> dict[str, Any]:
    """Parameters of a text encoder with what an edit file holds of it."""
    own = content.of(encoder)
    edit = WeightEdit(own.deltas(), report, own.units())
    return solve.apply_edit(pipeline.params[encoder], edit)


def as_json(found: Ported) -> dict[str, Any]:
    """All of it as JSON values; the concepts that are farthest from their targets first."""
    report = found.report
    return {
        "how": found.how,
        "difference": found.difference._asdict(),
        "left": float(np.median([one.left for one in found.reached])),
        "shift": float(np.median([one.shift for one in found.reached])),
        "distance": {"before": report.distance_before, "after": report.distance_after},
        "reached": [one._asdict() for one in sorted(found.reached, key=lambda one: -one.left)],
    }


def _differ(old: Any, new: Any) -> bool:
    return not all(jax.tree.leaves(jax.tree.map(np.array_equal, old, new)))


def _require_same(concepts: ConceptBank, base: Pipeline, ledger: Mapping[str, Any]) -> None:
    """UserError unless the ledger is of an edit of just these concepts, made for `base`."""
    wanted = {(concept.memory, concept.strength) for concept in concepts.active}
    found = {(request["memory"], request["strength"]) for request in ledger["requests"]}
    if wanted != found:
        raise UserError(
            "config.edit is not an edit of this bank as it is now; solve the bank again, or leave "
            "config.edit out"
        )
    if ledger["base"][FIRST] != memories.model_hashes(base)[FIRST]:
        raise UserError(
            f"config.edit was made for another text encoder than that of {base.folder}; leave it "
            "out, or give its own base model"
        )
