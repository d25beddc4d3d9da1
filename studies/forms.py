"""Other forms of a name, by solver: does an edit of "tench" change "tenches"? No image is drawn.

    python -m studies.forms runs/ridge runs/units

Each RUN is the folder of a finished edit of the same list. A form reads as the destination if its
final features, edited, are nearer to the destination's clean ones than to its own clean ones, in
the judge's sentences. A table with a line per form and a column per run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.editing.encoder.whole_prompts import end_features
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.explore.session import Session, open_session, solved
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.sprites.catalogue import catalogue
from studies.gates import FORMS


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args(arguments).runs
    columns = [_shares(open_session(run)) for run in runs]
    print(f"| form | names | {' | '.join(run.name for run in runs)} |")
    print("|---" * (len(runs) + 2) + "|")
    for form, (count, _) in columns[0].items():
        cells = " | ".join(f"{column[form][1]:.2f}" for column in columns)
        print(f"| {form} | {count:,} | {cells} |")
    return 0


def changed(
    requests: Sequence[EditRequest], change: Callable[[EditRequest], str]
) -> list[tuple[str, str]]:
    """Forms of sources with their destinations, where the form is another word than any source."""
    sources = {normalised(one.source) for one in requests}
    found = [(change(one), one.dests[0]) for one in requests]
    return [pair for pair in found if pair[0] and normalised(pair[0]) not in sources]


def moved(
    encoder: TextEncoder, edited: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> Bool[np.ndarray, " prompt"]:
    """For every pair of form and destination in every sentence: does it read as the destination?"""
    own, wanted = (
        tokenize(
            encoder.tokenizer,
            [fill(sentence, name).prompt for name in names for sentence in SENTENCES],
        )
        for names in zip(*pairs, strict=True)
    )
    found = end_features(encoder, edited, own)
    apart = (
        np.linalg.norm(found - end_features(encoder, encoder.params, ids), axis=1)
        for ids in (wanted, own)
    )
    return np.less(*apart)


def _shares(session: Session) -> dict[str, tuple[int, float]]:
    """Per form: how many names it changes, and the share of prompts that read as told."""
    requests = [concept.request for concept in session.concepts.concepts]
    encoder = session.pipeline.encoder
    edited = solved(session, [1.0] * len(requests)).pipeline.params[encoder.name]
    sets = {"the name itself": [(one.source, one.dests[0]) for one in requests]}
    for form, change in FORMS.items():
        sets[form] = changed(requests, lambda one, change=change: change(one.source))
    aliases = {alias.class_id: alias.name for alias in catalogue().aliases if alias.taught_right}
    sets["another name of the same object"] = changed(
        [one for one in requests if one.source_id is not None and one.task == "update"],
        lambda one: aliases.get(one.source_id or 0, ""),
    )
    return {
        form: (len(pairs), float(moved(encoder, edited, pairs).mean()))
        for form, pairs in sets.items()
        if pairs
    }


if __name__ == "__main__":
    sys.exit(main())
