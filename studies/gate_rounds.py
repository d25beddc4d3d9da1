"""Concept units written in many rounds, in text space: what is lost by not knowing other rounds.

    python -m studies.gate_rounds --count 1000 --rounds 1 10 100 --workdir runs/gates

The first requests of the mixed list on the bundled model, in so many rounds. A round is fitted from
its own names alone, as by someone who has the edited encoder and no bank: units leave what gates of
their block read as it was, so a round on edited weights finds the same states as one on the
pristine model. With a bank all names are fitted together, which is the line of one round. A line
per number of rounds: recall at the own name, in the judge's sentences and behind beginnings of
captions; share of the judge's sentences about the names of all rounds, about untouched objects and
artists, and of captions' tokens, in which any gate opens though its name does not stand there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import ModelConfig
from emcid_jax.editing.units import contexts
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.mixed import mixed_requests
from emcid_jax.workflow.open_model import open_model
from studies.gates import (
    SEED,
    Gates,
    fitted_gates,
    measured_statistics,
    parser,
    recall,
    sentences_about,
    untouched_names,
    wrongly_open,
)


def in_rounds(
    pipeline: Pipeline, requests: Sequence[EditRequest], measured: UnitStatistics, rounds: int
) -> Gates:
    """The gates of all requests, each fitted with those of its round alone."""
    rows = np.array_split(np.arange(len(requests)), rounds)
    parts = [[requests[row] for row in some] for some in rows]
    fits = [fitted_gates(pipeline, part, measured).fitted for part in parts]
    together = {
        name: np.concatenate([getattr(one, name) for one in fits])
        for name in ("directions", "thresholds", "reached")
    }
    fitted = dataclasses.replace(fits[0], **together)
    return Gates([one.source for one in requests], fitted, measured.mean, measured.block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per number of rounds."""
    options = _parse(arguments)
    pipeline, requests = open_model(ModelConfig()), mixed_requests()
    captions = [caption.text for caption in sample_captions(options.captions, SEED)]
    pool = contexts.beginnings(captions, 400, SEED)
    edited = requests[: options.count]
    sets = {"edited": [one.source for one in edited], **untouched_names(requests)}
    texts = [sentences_about(names) for names in sets.values()]
    measured = measured_statistics(pipeline, options.workdir, options.block)
    print("| rounds | judge's sentences | captions | edited | objects | artists | tokens |")
    print("|---|---|---|---|---|---|---|")
    for rounds in options.rounds:
        gates = in_rounds(pipeline, edited, measured, rounds)
        shares = list(recall(pipeline, [gates], pool))
        for some in texts:
            (found,) = wrongly_open(pipeline, [[gates]], some)
            shares.append(len(np.unique(found.texts)) / len(some))
        (found,) = wrongly_open(pipeline, [[gates]], captions)
        shares.append(len(found.texts) / found.tokens)
        print(f"| {rounds} | {' | '.join(f'{share:.4f}' for share in shares)} |", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    asked = parser("gate_rounds", __doc__)
    asked.add_argument("--count", type=int, default=1000)
    asked.add_argument("--rounds", type=int, nargs="+", default=[1, 10, 100])
    asked.add_argument("--block", type=int, default=0)
    asked.add_argument("--captions", type=int, default=20_000)
    return asked.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
