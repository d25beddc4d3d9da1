"""Hold-out classes of AICE: from the published file, or every class that no request edits."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from emcid_jax.evaluation.benchmarks.aice_protocol import HOLDOUT_PROMPTS, HoldoutClass
from emcid_jax.evaluation.drawing.draw import Draw, drawn_seeds
from emcid_jax.evaluation.judges.labels import LabelGroup
from emcid_jax.runtime.errors import UserError

_FIELDS = {"class name": str, "text prompt": str, "class id": int}


def read_holdout(path: Path, labels: LabelGroup) -> tuple[HoldoutClass, ...]:
    """Read the published hold-out file (`imgnet_aug_test.json`): its first three rows per class.

    Every image uses its own row's seed; the released code used the first seed of the *next* class
    for all of them. Raises `UserError` naming the file, row and field.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of rows")
    found: dict[int, tuple[str, list[Draw]]] = {}
    for number, row in enumerate(rows, 1):
        class_id, name, draw = _row(path, number, row, len(labels.labels))
        _, draws = found.setdefault(class_id, (name, []))
        if len(draws) < HOLDOUT_PROMPTS:
            draws.append(draw)
    return tuple(HoldoutClass(name, i, tuple(draws)) for i, (name, draws) in found.items())


def _row(path: Path, number: int, row: object, classes: int) -> tuple[int, str, Draw]:
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number}: not an object")
    for field, kind in _FIELDS.items():
        if not isinstance(row.get(field), kind):
            raise UserError(f"{path}: row {number}: field {field!r} must be a {kind.__name__}")
    class_id, name = row["class id"], row["class name"]
    if not 0 <= class_id < classes:
        raise UserError(
            f"{path}: row {number}: class id {class_id} is outside the judge's {classes} classes"
        )
    try:
        seed = int(row["random seed"])  # the file mixes 71583 and "71583"
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: row {number}: field 'random seed' must be a number") from None
    return class_id, name, Draw(row["text prompt"].replace("{}", name), seed)


def holdout_from_labels(
    labels: LabelGroup, edited: Collection[int], sentences: Sequence[str], *, seed: int = 0
) -> tuple[HoldoutClass, ...]:
    """Every class of the judge that no request edits, on free-form sentences of our own.

    Classes whose usual name is also a name of an edited class are left out: they must change.

    Args:
        labels: the judge's object labels.
        edited: class ids that are the source of a request.
        sentences: templates with `{}`; each class takes `HOLDOUT_PROMPTS` of them in turn.
        seed: of the images' seeds.
    """
    taken = {name.casefold() for i in edited for name in labels.labels[i]}
    found = []
    for class_id, names in enumerate(labels.labels):
        name = names[0]
        if class_id in edited or name.casefold() in taken:
            continue
        count = min(HOLDOUT_PROMPTS, len(sentences))
        chosen = [sentences[(class_id + k) % len(sentences)] for k in range(count)]
        seeds = drawn_seeds(name, seed, count)
        draws = (Draw(t.replace("{}", name), s) for t, s in zip(chosen, seeds, strict=True))
        found.append(HoldoutClass(name, class_id, tuple(draws)))
    return tuple(found)


def limited(
    holdout: Sequence[HoldoutClass], *, classes: int = 0, prompts: int = 0, seed: int = 0
) -> tuple[HoldoutClass, ...]:
    """At most `classes` classes, chosen by `seed`, with at most `prompts` images; 0 means all."""
    kept = list(holdout)
    if classes and classes < len(kept):
        picked = np.random.default_rng(seed).choice(len(kept), classes, replace=False)
        kept = [kept[i] for i in sorted(picked.tolist())]
    if not prompts:
        return tuple(kept)
    return tuple(HoldoutClass(h.name, h.class_id, h.draws[:prompts]) for h in kept)
