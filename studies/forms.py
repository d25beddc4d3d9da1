"""Other forms of a name, by solver: does an edit of "tench" change "tenches"? No image is drawn.

    python -m studies.forms runs/ridge runs/units

Each RUN is the folder of a finished edit of the same list on the bundled model. A table with a line
per form and a column per run; what is measured is `evaluation/benchmarks/other_forms.py`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emcid_jax.evaluation.benchmarks import other_forms
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.explore.session import Session, open_session, solved
from emcid_jax.sprites.catalogue import catalogue


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args(arguments).runs
    columns = [_recalls(open_session(run)) for run in runs]
    print(f"| form | names | {' | '.join(run.name for run in runs)} |")
    print("|---" * (len(runs) + 2) + "|")
    for one, *others in zip(*columns, strict=True):
        cells = " | ".join(f"{found.recall:.2f}" for found in (one, *others))
        print(f"| {one.form} | {one.names:,} | {cells} |")
    return 0


def _recalls(session: Session) -> tuple[other_forms.FormRecall, ...]:
    """Of a run's whole edit."""
    requests = [concept.request for concept in session.concepts.concepts]
    edited = solved(session, [1.0] * len(requests)).pipeline
    return other_forms.measure(session.pipeline, edited, requests, {OBJECT: _objects()})


def _objects() -> LabelGroup:
    """The sprite world's objects, with the other names that captions taught the model."""
    world = catalogue()
    taught = {alias.class_id: alias.name for alias in world.aliases if alias.taught_right}
    labels = tuple((name, *filter(None, [taught.get(i)])) for i, name in enumerate(world.objects))
    return LabelGroup(OBJECT, tuple(range(len(labels))), labels)


if __name__ == "__main__":
    sys.exit(main())
