"""Hold-out classes of AICE: from the published file, or every class that no request edits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.readers.located import number_in
from emcid_jax.evaluation.benchmarks.aice.protocol import HOLDOUT_PROMPTS
from emcid_jax.evaluation.drawing.draw import Draw, Named, drawn_seeds
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.runtime.errors import Failures, Problem, UserError, shown
from emcid_jax.storage.json_text import Listed, Record
from emcid_jax.storage.text_files import read_json

_FIELDS = {"class name": str, "text prompt": str, "class id": int}


def read_holdout(path: Path, labels: LabelGroup) -> tuple[Named, ...]:
    """Read the published hold-out file (`imgnet_aug_test.json`): its first three rows per class.

    Every image uses its own row's seed; the released code used the first seed of the *next* class
    for all of them. Raises `UserError` naming every line and field.
    """
    failures = Failures(path)
    rows = read_json(path, "holdout")
    if not isinstance(rows, Listed):
        raise UserError(f"{path}: holdout: is not a list of rows ({shown(rows)}) — give the file")
    found: dict[int, tuple[str, list[Draw]]] = {}
    for row, line in zip(rows, rows.lines, strict=True):
        bad = list(_problems(row, len(labels.labels)))
        for problem in bad:
            failures.add(line, problem)
        if not bad:
            seed = number_in(row, "random seed", line, failures)  # 71583 or "71583"
            name = row["class name"]
            _, draws = found.setdefault(row["class id"], (name, []))
            if len(draws) < HOLDOUT_PROMPTS:
                draws.append(Draw(row["text prompt"].replace("{}", name), seed))
    failures.finish()
    return tuple(Named(name, OBJECT, i, tuple(draws)) for i, (name, draws) in found.items())


def _problems(row: object, classes: int) -> Iterator[Problem]:
    if not isinstance(row, Record):
        yield Problem("holdout", "is not an object", row, "write the class and its prompt")
        return
    for field, kind in _FIELDS.items():
        if type(row.get(field)) is not kind:
            fix = f"give a {'text' if kind is str else 'number'}"
            yield Problem(field, "is missing or of another kind", row.get(field), fix)
            return
    if not 0 <= row["class id"] < classes:
        fix = "give one of the judge's classes"
        yield Problem("class id", f"is outside the judge's {classes} classes", row["class id"], fix)


def holdout_from_labels(
    labels: LabelGroup, edited: Collection[int], sentences: Sequence[str], *, seed: int = 0
) -> tuple[Named, ...]:
    """Every class of the judge that no request edits, on free-form sentences of our own.

    Classes whose usual name is also a name of an edited class are left out: they must change.

    Args:
        labels: the judge's object labels.
        edited: class ids that are the source of a request.
        sentences: templates with `{}`; each class takes `HOLDOUT_PROMPTS` of them in turn.
        seed: of the images' seeds.
    """
    taken = {normalised(name) for i in edited for name in labels.labels[i]}
    found = []
    for class_id, names in enumerate(labels.labels):
        name = names[0]
        if class_id in edited or normalised(name) in taken:
            continue
        count = min(HOLDOUT_PROMPTS, len(sentences))
        chosen = [sentences[(class_id + k) % len(sentences)] for k in range(count)]
        seeds = drawn_seeds(name, seed, count)
        draws = (Draw(t.replace("{}", name), s) for t, s in zip(chosen, seeds, strict=True))
        found.append(Named(name, OBJECT, class_id, tuple(draws)))
    return tuple(found)


def limited(
    holdout: Sequence[Named], *, classes: int = 0, prompts: int = 0, seed: int = 0
) -> tuple[Named, ...]:
    """At most `classes` classes, chosen by `seed`, with at most `prompts` images; 0 means all."""
    kept = list(holdout)
    if classes and classes < len(kept):
        picked = np.random.default_rng(seed).choice(len(kept), classes, replace=False)
        kept = [kept[i] for i in sorted(picked.tolist())]
    if not prompts:
        return tuple(kept)
    return tuple(h._replace(draws=h.draws[:prompts]) for h in kept)
