"""Gates of concept units in text space: where they open, and where they should not.

    python -m studies.gates --counts 10 100 300 1000 2000 --captions 100000 --workdir runs/gates

The mixed list on a bundled model (`--model`; of two text encoders the first); captions are such as
no gate was fitted to. A line per block (`--blocks`) and number of requests: recall at the own name,
in the judge's sentences and behind beginnings of captions; share of prompts of untouched objects
and artists, and of captions' tokens, at which any gate opens though its name does not stand there.
Then, for the last block and the largest number, recall at other forms of the names, and the gates
that open in each of `--prompts`. Last, a line for each of `--made-up 100 10000`: so many names of
two words of the captions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import ModelConfig, MomentConfig
from emcid_jax.editing.moments.second_moment import exact
from emcid_jax.editing.units import contexts, recognise, statistics
from emcid_jax.editing.units.fit import FLOOR, FittedGates, fit_gates
from emcid_jax.editing.units.states import fc1_inputs, name_states
from emcid_jax.evaluation.benchmarks.other_forms import FORMS
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.sprites.bundled import BUNDLED, SHIPPED
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.sprites.mixed import mixed_requests
from emcid_jax.workflow.find_moments import find_captions
from emcid_jax.workflow.open_model import open_model

SEED = 777
BATCH, PART = 256, 20_480
"""Texts or gates at once, and texts whose tokens are held at once."""
UNTOUCHED = {"objects": 200, "artists": 100}
MADE_UP_CAPTIONS = 2_000
"""On which made-up names are tried."""
CONTEXTS = 5
"""Beginnings of captions per name, beside the judge's sentences."""


class Tokens(NamedTuple):
    """Tokens of texts, without start and end token."""

    states: Float[np.ndarray, "token dim"]
    recent: Int[np.ndarray, "token recent"]
    """The last token ids up to each."""
    text: Int[np.ndarray, " token"]
    """Number of the text that it stands in."""


class Gates(NamedTuple):
    """Fitted gates and whose they are."""

    sources: list[str]
    fitted: FittedGates
    mean: Float[np.ndarray, " dim"]
    block: int
    """Whose `fc1` they read."""

    def open(
        self, states: Float[np.ndarray, "name context dim"]
    ) -> Bool[np.ndarray, "name context"]:
        """Where each name's own gate is open."""
        scores = np.einsum("ncd,nd->nc", states - self.mean, self.fitted.directions)
        return scores > self.fitted.thresholds[:, None]


Series = Sequence[Gates]
"""A gate for every name, or one in each of several blocks that must all open."""


def fitted_gates(
    pipeline: Pipeline,
    requests: Sequence[EditRequest],
    measured: statistics.UnitStatistics,
    floor: float = FLOOR,
    *,
    all_strangers: bool = False,
) -> Gates:
    """The gates of an edit with the default settings, or another threshold and all strangers."""
    fitted = fit_gates(
        pipeline.encoder,
        requests,
        (),
        measured,
        contexts=10,
        false_firing=1e-5,
        floor=floor,
        all_strangers=all_strangers,
    )
    return Gates([one.source for one in requests], fitted, measured.mean, measured.block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints both tables."""
    options = _parse(arguments)
    pipeline, requests = open_model(ModelConfig(path=options.model)), mixed_requests()
    captions = [caption.text for caption in sample_captions(options.captions, SEED)]
    untouched = {kind: sentences_about(names) for kind, names in untouched_names(requests).items()}
    lists = [requests[:count] for count in options.counts]
    pool = contexts.beginnings(captions, 400, SEED)
    print(
        "| block | n | CPU s | judge's sentences | captions | untouched objects | "
        "untouched artists | caption tokens |\n|---|---|---|---|---|---|---|---|"
    )
    asked = options.threshold, options.all_strangers
    for block in options.blocks:
        measured = measured_statistics(pipeline, options.workdir, block)
        fits, rows = zip(*_fitted(pipeline, lists, measured, pool, *asked), strict=True)
        alone = [(gates,) for gates in fits]
        for texts in untouched.values():
            for row, found in zip(rows, wrongly_open(pipeline, alone, texts), strict=True):
                row.append(len(np.unique(found.texts)) / len(texts))
        for row, found in zip(rows, wrongly_open(pipeline, alone, captions), strict=True):
            row.append(len(found.texts) / found.tokens)
        for gates, (spent, *shares) in zip(fits, rows, strict=True):
            cells = " | ".join(f"{share:.4f}" for share in shares)
            print(f"| {block} | {len(gates.sources):,} | {spent:.0f} | {cells} |", flush=True)
    gates = max(fits, key=lambda one: len(one.sources))  # Of the last block.
    print("\n| form | names | recall |\n|---|---|---|")
    for form, change in FORMS.items():
        other = [change(name) for name in gates.sources]
        differs = np.array(
            [normalised(a) != normalised(b) for a, b in zip(gates.sources, other, strict=True)]
        )
        if differs.any():
            share = own_open(pipeline, gates, other)[differs].mean()
            print(f"| {form} | {differs.sum():,} | {share:.3f} |")
    for prompt in options.prompts:
        found = ", ".join(
            f"{name} ({score:.2f})" for name, score in opened_by(pipeline, [gates], prompt)
        )
        print(f"\n{prompt} opens: {found or 'none'}")
    for count in options.made_up:
        print(f"\n{_told(pipeline, measured, made_up(captions, count), captions)}", flush=True)
    return 0


def _fitted(
    pipeline: Pipeline,
    lists: Sequence[Sequence[EditRequest]],
    measured: statistics.UnitStatistics,
    pool: Sequence[str],
    floor: float,
    all_strangers: bool,
) -> Iterator[tuple[Gates, list[float]]]:
    """Gates of each list, with their time of a processor and their recall in both contexts."""
    for requests in lists:
        began = time.process_time()
        gates = fitted_gates(pipeline, requests, measured, floor, all_strangers=all_strangers)
        spent = time.process_time() - began
        yield gates, [spent, *recall(pipeline, [gates], pool)]


def made_up(captions: Sequence[str], count: int) -> list[str]:
    """Different names of two words of the captions each, drawn by SEED."""
    words = sorted({word for text in captions for word in text.split() if word.isalpha()})
    rng, found = np.random.default_rng(SEED), {}
    while len(found) < count:
        first, second = rng.choice(len(words), 2, replace=False)
        found[normalised(f"{words[first]} {words[second]}")] = None
    return list(found)


def _told(
    pipeline: Pipeline,
    measured: statistics.UnitStatistics,
    names: Sequence[str],
    captions: Sequence[str],
) -> str:
    """A line on the gates of made-up names: time, recall, false firing."""
    asked = [EditRequest(name, f"{name} x", ("a photo of {}", "{}")) for name in names]
    wall, processor = time.perf_counter(), time.process_time()
    gates = fitted_gates(pipeline, asked, measured)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    opened = gates.open(name_contexts(pipeline, names, measured.block, SENTENCES)).mean()
    (wrong,) = wrongly_open(pipeline, [[gates]], captions[:MADE_UP_CAPTIONS])
    return (
        f"{len(names):,} made-up names: {wall:.0f} s, {processor:.0f} s of processor time; "
        f"recall in the judge's sentences {opened:.3f}; "
        f"{len(wrong.texts) / wrong.tokens:.4f} of caption tokens open one wrongly"
    )


def untouched_names(requests: Sequence[EditRequest]) -> dict[str, list[str]]:
    """Names of objects and artists that no request has as source or destination."""
    edited = {normalised(name) for one in requests for name in (one.source, *one.dests)}
    world = catalogue()
    every = {"objects": world.objects, "artists": world.artists}
    return {
        kind: [name for name in names if normalised(name) not in edited][: UNTOUCHED[kind]]
        for kind, names in every.items()
    }


class Wrong(NamedTuple):
    """Where any gate is open whose name does not end there."""

    texts: Int[np.ndarray, " opened"]
    """The text, one entry per token at which a gate is open."""
    tokens: int
    """Of all texts."""


def wrongly_open(pipeline: Pipeline, fits: Sequence[Series], texts: Sequence[str]) -> list[Wrong]:
    """Of each of several lists of names, the tokens at which one wrongly answers."""
    found: list[list[np.ndarray]] = [[] for _ in fits]
    blocks, tokens = {gates.block for series in fits for gates in series}, 0
    for first in range(0, len(texts), PART):
        some = texts[first : first + PART]
        parts = {block: text_tokens(pipeline, some, block) for block in sorted(blocks)}
        part = next(iter(parts.values()))  # The tokens are the same in every block.
        tokens += len(part.text)
        for places, series in zip(found, fits, strict=True):
            spoken = recognise.own_rows(pipeline.encoder.tokenizer, series[0].sources, part.recent)
            read = [
                (
                    parts[gates.block].states - gates.mean.astype(np.float32),
                    gates.fitted.directions.astype(np.float32),
                    gates.fitted.thresholds,
                )
                for gates in series
            ]
            places.append(first + part.text[any_open(read, spoken)])
    return [Wrong(np.concatenate(places), tokens) for places in found]


def any_open(
    read: Sequence[
        tuple[
            Float[np.ndarray, "token dim"],
            Float[np.ndarray, "gate dim"],
            Float[np.ndarray, " gate"],
        ]
    ],
    spoken: Sequence[Int[np.ndarray, " _"]],
) -> Bool[np.ndarray, " token"]:
    """Tokens at which any name answers that does not end there.

    Args:
        read: of every block that has a gate for each name: what the gates read, about the mean;
            their directions, in the states' own type; their thresholds. All must open.
        spoken: of every name the tokens where it ends.
    """
    opened = np.zeros(len(read[0][0]), bool)
    for first in range(0, len(spoken), BATCH):
        some = slice(first, first + BATCH)
        above = np.logical_and.reduce(
            [
                np.asarray(states @ directions[some].T > thresholds[some])
                for states, directions, thresholds in read
            ]
        )
        for column, own in enumerate(spoken[some]):
            above[own, column] = False
        opened |= above.any(axis=1)
    return opened


def recall(pipeline: Pipeline, series: Series, pool: Sequence[str]) -> tuple[float, float]:
    """Share of their own names at which all gates are open: in the judge's sentences, and behind
    beginnings of captions."""
    opened = np.logical_and.reduce(
        [
            gates.open(name_contexts(pipeline, gates.sources, gates.block, SENTENCES, pool))
            for gates in series
        ]
    )
    told, new = np.split(opened, [len(SENTENCES)], axis=1)
    return float(told.mean()), float(new.mean())


def opened_by(pipeline: Pipeline, series: Series, prompt: str) -> list[tuple[str, float]]:
    """The names that answer anywhere in a prompt, with the highest scores of their first gates."""
    scores = [
        (text_tokens(pipeline, [prompt], gates.block).states - gates.mean)
        @ gates.fitted.directions.T
        for gates in series
    ]
    opened = np.logical_and.reduce(
        [one > gates.fitted.thresholds for one, gates in zip(scores, series, strict=True)]
    )
    highest = scores[0].max(axis=0)
    return [
        (series[0].sources[gate], float(highest[gate]))
        for gate in np.flatnonzero(opened.any(axis=0)).tolist()
    ]


def own_open(
    pipeline: Pipeline, gates: Gates, forms: Sequence[str]
) -> Bool[np.ndarray, "name sentence"]:
    """Whether a gate opens anywhere in the judge's sentences about another form of its name."""
    part = text_tokens(pipeline, sentences_about(forms), gates.block)
    gate = part.text // len(SENTENCES)
    found = np.zeros(len(forms) * len(SENTENCES), bool)
    for first in range(0, len(gate), PART):
        rows = slice(first, first + PART)
        directions = gates.fitted.directions[gate[rows]]
        scores = np.einsum("td,td->t", part.states[rows] - gates.mean, directions)
        found[part.text[rows][scores > gates.fitted.thresholds[gate[rows]]]] = True
    return found.reshape(len(forms), len(SENTENCES))


def text_tokens(pipeline: Pipeline, texts: Sequence[str], block: int) -> Tokens:
    """What a block's gates read at every token of texts."""
    text = exact(pipeline.encoder.model, dict(pipeline.params["text_encoder"]))

    @jax.jit
    def encoded(ids: Array) -> Array:
        return fc1_inputs(text, pipeline.params["text_encoder"], ids, block)

    parts = []
    for first in range(0, len(texts), BATCH):
        ids = np.asarray(tokenize(pipeline.encoder.tokenizer, texts[first : first + BATCH]))
        states = np.asarray(encoded(np.resize(ids, (BATCH, ids.shape[1]))))[: len(ids)]
        ends = (ids == pipeline.encoder.tokenizer.eos_token_id).argmax(axis=1)
        places = np.arange(ids.shape[1])
        row, place = np.nonzero((places > 0) & (places < ends[:, None]))
        padded = np.pad(ids, ((0, 0), (statistics.RECENT - 1, 0)))
        recent = padded[row[:, None], place[:, None] + np.arange(statistics.RECENT)]
        parts.append(Tokens(states[row, place], recent, first + row))
    return Tokens(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def name_contexts(
    pipeline: Pipeline,
    names: Sequence[str],
    block: int,
    templates: Sequence[str],
    pool: Sequence[str] = (),
) -> Float[np.ndarray, "name context dim"]:
    """At the names' last tokens: in templates, and behind CONTEXTS beginnings of the pool."""
    every, count = [tuple(templates)] * len(names), CONTEXTS if pool else 0
    prompts = contexts.name_prompts(pipeline.encoder.tokenizer, names, every, pool, count, names)
    return name_states(pipeline.encoder.model, pipeline.params["text_encoder"], prompts, block)


def sentences_about(names: Sequence[str]) -> list[str]:
    """The judge's sentences, of one name after the other."""
    return [sentence.replace("{}", name) for name in names for sentence in SENTENCES]


def measured_statistics(pipeline: Pipeline, workdir: Path, block: int) -> statistics.UnitStatistics:
    """The statistics of the default captions, from `workdir` or measured and kept there."""
    path = workdir / f"units-{block}.safetensors"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        config = MomentConfig()
        found = statistics.measure(pipeline.encoder, find_captions(config), block, seed=config.seed)
        statistics.write_statistics(path, found)
    return statistics.read_statistics(path)


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """What the studies of gates are asked by: all keep statistics in a work folder."""
    found = argparse.ArgumentParser(
        prog=f"python -m studies.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--workdir", type=Path, default=Path("runs/gates"))
    return found


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    asked = parser("gates", __doc__)
    asked.add_argument("--blocks", type=int, nargs="+", default=[0])
    asked.add_argument("--counts", type=int, nargs="+", default=[10, 100, 300, 1000, 2000])
    asked.add_argument("--captions", type=int, default=100_000)
    asked.add_argument("--made-up", type=int, nargs="+", default=[], help="so many names")
    asked.add_argument("--model", choices=tuple(SHIPPED), default=BUNDLED)
    asked.add_argument("--threshold", type=float, default=FLOOR, help="the lowest")
    asked.add_argument("--all-strangers", action="store_true", help="as `stage_two.all_strangers`")
    asked.add_argument("--prompts", nargs="+", default=[])
    return asked.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
