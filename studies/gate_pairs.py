"""One gate per concept, or two in different blocks that must agree, in text space.

    python -m studies.gate_pairs --count 300 --second 2 4 --thresholds 0.6 0.7

The mixed list on the bundled model, as in `studies.gates`. In series, a unit of the first block
would mark a match, and one of the second would answer only where its own gate opens, too. A line
per blocks and lowest threshold: recall at the own name, in the judge's sentences and behind
beginnings of captions; share of prompts of untouched objects and artists, and of captions' tokens,
at which any concept answers though its name does not stand there. The names that answer in each of
`--prompts` go to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from emcid_jax.config import ModelConfig
from emcid_jax.editing.units import contexts
from emcid_jax.editing.units.fit import FLOOR
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.mixed import mixed_requests
from emcid_jax.workflow.open_model import open_model
from studies.gates import (
    SEED,
    fitted_gates,
    measured_statistics,
    opened_by,
    parser,
    recall,
    sentences_about,
    untouched_names,
    wrongly_open,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, then what answers in the prompts."""
    options = _parse(arguments)
    pipeline, requests = open_model(ModelConfig()), mixed_requests()
    untouched = [sentences_about(names) for names in untouched_names(requests).values()]
    captions = [caption.text for caption in sample_captions(options.captions, SEED)]
    pool = contexts.beginnings(captions, 400, SEED)
    requests, blocks = requests[: options.count], (options.first, *options.second)
    print(
        "| blocks | threshold | judge's sentences | captions | untouched objects | "
        "untouched artists | caption tokens |\n|---|---|---|---|---|---|---|"
    )
    for floor in options.thresholds:
        first, *others = (
            fitted_gates(
                pipeline, requests, measured_statistics(pipeline, options.workdir, block), floor
            )
            for block in blocks
        )
        every = [[first], *([first, other] for other in others)]
        wrong = [wrongly_open(pipeline, every, texts) for texts in (*untouched, captions)]
        for series, *texts, tokens in zip(every, *wrong, strict=True):
            shares = [*recall(pipeline, series, pool)]
            for some, found in zip(untouched, texts, strict=True):
                shares.append(len(np.unique(found.texts)) / len(some))
            shares.append(len(tokens.texts) / tokens.tokens)
            cells = " | ".join(f"{share:.4f}" for share in shares)
            where = " and ".join(str(gates.block) for gates in series)
            print(f"| {where} | {floor} | {cells} |", flush=True)
            for prompt in options.prompts:
                names = ", ".join(name for name, _ in opened_by(pipeline, series, prompt))
                print(f"{prompt} {names or 'nothing'}", file=sys.stderr)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    asked = parser("gate_pairs", __doc__)
    asked.add_argument("--count", type=int, default=300)
    asked.add_argument("--first", type=int, default=0)
    asked.add_argument("--second", type=int, nargs="+", default=[2, 4])
    asked.add_argument("--thresholds", type=float, nargs="+", default=[0.6, FLOOR])
    asked.add_argument("--captions", type=int, default=20_000)
    asked.add_argument("--prompts", nargs="+", default=[])
    return asked.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
