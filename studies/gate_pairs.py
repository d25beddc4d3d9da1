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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import ModelConfig
from emcid_jax.editing.units import contexts, recognise
from emcid_jax.editing.units.fit import FLOOR, fit_gates
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.mixed import mixed_requests
from emcid_jax.workflow.open_model import open_model
from studies.gates import (
    BATCH,
    PART,
    SEED,
    Gates,
    Tokens,
    measured_statistics,
    name_contexts,
    sentences_about,
    text_tokens,
    untouched_names,
)


class Wrong(NamedTuple):
    """Where a concept answers to something else."""

    texts: float
    """Share of texts with such a token."""
    tokens: float
    """Share of tokens."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, then what answers in the prompts."""
    options = _parse(arguments)
    pipeline, requests = open_model(ModelConfig()), mixed_requests()
    untouched = {kind: sentences_about(names) for kind, names in untouched_names(requests).items()}
    captions = [caption.text for caption in sample_captions(options.captions, SEED)]
    pool = contexts.beginnings(captions, 400, SEED)
    requests = requests[: options.count]
    print(
        "| blocks | threshold | judge's sentences | captions | untouched objects | "
        "untouched artists | caption tokens |\n|---|---|---|---|---|---|---|"
    )
    for floor in options.thresholds:
        fits = {
            block: _fitted(pipeline, requests, options.workdir, block, floor)
            for block in (options.first, *options.second)
        }
        for blocks in ((options.first,), *((options.first, block) for block in options.second)):
            gates = [fits[block] for block in blocks]
            opened = own_answers(pipeline, gates, pool)
            told, new = np.split(opened, [len(SENTENCES)], axis=1)
            wrong = [wrong_answers(pipeline, gates, texts) for texts in untouched.values()]
            shares = [told.mean(), new.mean(), *(one.texts for one in wrong)]
            shares.append(wrong_answers(pipeline, gates, captions).tokens)
            cells = " | ".join(f"{share:.4f}" for share in shares)
            print(f"| {' and '.join(map(str, blocks))} | {floor} | {cells} |", flush=True)
            for prompt in options.prompts:
                names = ", ".join(answering(pipeline, gates, prompt))
                print(f"{prompt} {names or 'nothing'}", file=sys.stderr)
    return 0


def _fitted(
    pipeline: Pipeline, requests: Sequence[EditRequest], workdir: Path, block: int, floor: float
) -> Gates:
    measured = measured_statistics(pipeline, workdir, block)
    fitted = fit_gates(
        pipeline.encoder, requests, (), measured, contexts=10, false_firing=1e-5, floor=floor
    )
    return Gates([one.source for one in requests], fitted, measured.mean, block)


def own_answers(
    pipeline: Pipeline, fits: Sequence[Gates], pool: Sequence[str]
) -> Bool[np.ndarray, "name context"]:
    """Whether all gates of a name open at it, in the judge's sentences and behind beginnings."""
    opened = [
        gates.open(name_contexts(pipeline, gates.sources, gates.block, SENTENCES, pool))
        for gates in fits
    ]
    return np.logical_and.reduce(opened)


def wrong_answers(pipeline: Pipeline, fits: Sequence[Gates], texts: Sequence[str]) -> Wrong:
    """How often all gates of some name open where that name does not end."""
    told, count, total = set(), 0, 0
    for first in range(0, len(texts), PART):
        parts = [text_tokens(pipeline, texts[first : first + PART], one.block) for one in fits]
        opened = np.zeros(len(parts[0].text), bool)
        for above in _answers(pipeline, fits, parts):
            opened |= above.any(axis=1)
        told |= set((first + parts[0].text[opened]).tolist())
        count, total = count + int(opened.sum()), total + len(opened)
    return Wrong(len(told) / len(texts), count / total)


def _answers(
    pipeline: Pipeline, fits: Sequence[Gates], parts: Sequence[Tokens]
) -> Iterator[Bool[np.ndarray, "token gate"]]:
    """Of some names after the others: tokens at which all gates open, but for the names' ends."""
    spoken = recognise.own_rows(pipeline.encoder.tokenizer, fits[0].sources, parts[0].recent)
    for first in range(0, len(spoken), BATCH):
        some = slice(first, first + BATCH)
        above = np.logical_and.reduce(
            [above_threshold(gates, part, some) for gates, part in zip(fits, parts, strict=True)]
        )
        for column, own in enumerate(spoken[some]):
            above[own, column] = False
        yield above


def above_threshold(gates: Gates, part: Tokens, some: slice) -> Bool[np.ndarray, "token gate"]:
    """Where the gates of some names open."""
    states: Float[np.ndarray, "token dim"] = part.states - gates.mean.astype(np.float32)
    directions = gates.fitted.directions[some].astype(np.float32)
    return np.asarray(states @ directions.T > gates.fitted.thresholds[some])


def answering(pipeline: Pipeline, fits: Sequence[Gates], prompt: str) -> list[str]:
    """The names that answer anywhere in a prompt."""
    parts = [text_tokens(pipeline, [prompt], gates.block) for gates in fits]
    every = slice(0, len(fits[0].sources))
    opened = np.logical_and.reduce(
        [above_threshold(gates, part, every) for gates, part in zip(fits, parts, strict=True)]
    )
    return [fits[0].sources[gate] for gate in np.flatnonzero(opened.any(axis=0)).tolist()]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.gate_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--second", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.6, FLOOR])
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--prompts", nargs="+", default=[])
    parser.add_argument("--workdir", type=Path, default=Path("runs/gates"))
    options = parser.parse_args(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
