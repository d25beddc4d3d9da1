"""The factors of `debias` requests: all of them searched together, then checked together.

*Search*, every request on its own: candidates' offsets are added to the text states, which is what
a perfect Stage II would do; candidates of all requests are drawn in the same batches. *Check*:
Stage II writes all requests of the run, the edited model draws them, and those that are off get
other factors; again until all are near, or the rounds are used up.

Every round is filed, and the next one follows from those before it by pure functions: a killed
search goes on with the round that was in flight.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.config import DebiasConfig
from emcid_jax.editing.bank.memories import Memory, hash_of
from emcid_jax.editing.debias import mixing
from emcid_jax.editing.debias.mixing import Factors, Trial
from emcid_jax.editing.debias.offset_images import offset_batches
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.evaluation.benchmarks.debias import Values, count_values, find_values
from emcid_jax.evaluation.drawing.draw import drawn_seeds
from emcid_jax.evaluation.judges.classifier import Judge
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.pipelines.generate import image_batches
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime import preemption
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import convert
from emcid_jax.storage import checksums
from emcid_jax.workflow.workdir import Run

FORMAT = 1
"""Raised whenever a trial would come out differently from the same inputs."""
FILE = "debias.json"
"""The trials and what was found, in the workdir."""

Solve = Callable[[Sequence[Factors]], Pipeline]
"""Factors of every request to the model that Stage II makes of the whole run with them."""
Candidates = Sequence[Sequence[Factors]]
"""Factors to try, per request."""


class Mixtures(NamedTuple):
    """What the search ends with, one entry per request."""

    factors: tuple[Factors, ...]
    counts: tuple[tuple[int, ...], ...]
    """What the jointly edited model drew with these factors, or, where they are the last round's
    conclusion, in that round."""
    near: tuple[bool, ...]
    """Whether that meets the tolerance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """All that stays the same during a search."""

    requests: Sequence[EditRequest]
    memories: Sequence[Sequence[Memory]]
    """One per destination of every request."""
    pipeline: Pipeline
    """The clean model."""
    judge: Judge
    config: DebiasConfig
    where: tuple[Site, ...]
    """Where the memories were found."""
    run: Run

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what decides the trials, but for Stage II's settings (the workdir's)."""
        settings = dataclasses.asdict(self.config) | {"batch": 0}
        asked = [(request.source, request.ratios) for request in self.requests]
        states = [[memory.z.tolist() for memory in one] for one in self.memories]
        return hash_of([FORMAT, settings, self.judge.fingerprint, self.place, asked, states])

    @property
    def place(self) -> int | list[list[Any]]:
        """The sites as the fingerprint has them: of a single encoder its block."""
        if len(self.where) == 1 and self.where[0].encoder == FIRST:
            return self.where[0].layer
        return [list(site) for site in self.where]

    def values(self, number: int) -> Values:
        """What the judge calls the destinations of a request; `require_judgeable` passed."""
        found = find_values(self.requests[number], self.judge.groups)
        assert found is not None
        return found


def require_judgeable(requests: Iterable[EditRequest], judge: Judge, config: DebiasConfig) -> None:
    """UserError, a line each, for requests whose search could not be judged or could not end."""
    problems = []
    for request in requests:
        if find_values(request, judge.groups) is None:
            problems.append(
                f"{request.origin}: dest: the judge cannot tell {list(request.dests)} apart; name "
                f"in each another label of one of its groups ({', '.join(judge.groups)}), or give "
                "another --config.evaluation.judge"
            )
        least = mixing.resolution(request.ratios, config.images)
        if least > config.tolerance + mixing.ROUNDING:
            problems.append(
                f"{request.origin}: config.debias.tolerance is {config.tolerance}, but "
                f"{config.images} images cannot come nearer to ratios {list(request.ratios)} than "
                f"{least:.3g}; raise it or config.debias.images"
            )
    if problems:
        raise UserError("\n".join(problems))


def find_mixtures(search: Search, solve: Solve) -> Mixtures:
    """The factors of every request; what the workdir has of an equal search is not redone."""
    rounds = Rounds(search)
    trials = _search(search, rounds)
    found = _check(search, rounds, trials, solve)
    rounds.finish(found)
    for request, near, counts in zip(search.requests, found.near, found.counts, strict=True):
        if not near:
            logging.warning(
                "%s: the rounds are used up; of %r the last counts were %s, requested are %s",
                request.origin,
                request.source,
                list(counts),
                list(request.ratios),
            )
    return found


def _search(search: Search, rounds: Rounds) -> list[list[Trial]]:
    """Trials of every request on its own, until the factors that were aimed at proved near."""
    config, trials = search.config, [[] for _ in search.requests]
    asked = [request.ratios for request in search.requests]
    candidates = [mixing.first_candidates(ratios, config.candidates) for ratios in asked]
    for number in range(1 + config.rounds):
        new = rounds.next("search", candidates, None)
        for one, found in zip(trials, new, strict=True):
            one += found
        candidates = [
            () if number and _is_near(one, ratios, config) else (_aimed(one, ratios, config),)
            for one, ratios in zip(trials, asked, strict=True)
        ]
        if not any(candidates):
            break
    return trials


def _check(
    search: Search, rounds: Rounds, trials: Sequence[Sequence[Trial]], solve: Solve
) -> Mixtures:
    """Rounds of solving, drawing all requests, and moving the factors of those that are off."""
    config, asked = search.config, [request.ratios for request in search.requests]
    responses = [
        mixing.fit(one, mixing.broad_prior(len(ratios)))
        for one, ratios in zip(trials, asked, strict=True)
    ]
    factors = [mixing.aim(*one, config.images) for one in zip(responses, asked, strict=True)]
    checks: list[list[Trial]] = [[] for _ in asked]
    near = [False] * len(asked)
    for _ in range(1 + config.refinements):
        new = rounds.next("check", [(one,) for one in factors], solve)
        for one, found in zip(checks, new, strict=True):
            one += found
        near = [
            mixing.is_near(mixing.pooled(one, f), ratios, config.tolerance)
            for one, f, ratios in zip(checks, factors, asked, strict=True)
        ]
        if all(near):
            break
        for i, ratios in enumerate(asked):
            if not near[i]:
                prior = mixing.narrow_prior(responses[i])
                factors[i] = mixing.aim(mixing.fit(checks[i], prior), ratios, config.images)
    counts = [
        mixing.pooled(one, f) or one[-1].counts for one, f in zip(checks, factors, strict=True)
    ]
    return Mixtures(tuple(factors), tuple(counts), tuple(near))


def _is_near(trials: Sequence[Trial], ratios: Sequence[float], config: DebiasConfig) -> bool:
    """Whether all images drawn with the last trial's factors together have the requested shares."""
    counts = mixing.pooled(trials, trials[-1].factors)
    return mixing.is_near(counts, ratios, config.tolerance)


def _aimed(trials: Sequence[Trial], ratios: Sequence[float], config: DebiasConfig) -> Factors:
    response = mixing.fit(trials, mixing.broad_prior(len(ratios)))
    return mixing.aim(response, ratios, config.images)


@dataclasses.dataclass(frozen=True)
class _Round:
    """What a round drew."""

    kind: str
    trials: tuple[tuple[tuple[Factors, tuple[int, ...]], ...], ...]
    """Per request and candidate: the factors and the counts."""


def _stored(search: Search, path: Path) -> list[_Round]:
    """The rounds on file of an equal search. UserError if the file is damaged."""
    remedy = "delete it, and the search starts anew"
    content = checksums.read_json(path, remedy, older=True)
    if content.get("fingerprint") != search.fingerprint:
        return []
    try:
        rounds = convert(content.get("rounds"), tuple[_Round, ...], "rounds")
        if any(len(one.trials) != len(search.requests) for one in rounds):
            raise UserError("rounds are not those of this run's requests")
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    return list(rounds)


class Rounds:
    """Rounds of trials in their order: those on file first, then drawn ones, filed at once."""

    def __init__(self, search: Search) -> None:
        self._search, self._path = search, search.run.workdir / FILE
        self._stored = _stored(search, self._path) if self._path.exists() else []
        self._done: list[_Round] = []

    def next(self, kind: str, candidates: Candidates, solve: Solve | None) -> list[list[Trial]]:
        """The trials of every candidate; with `solve` on the jointly edited model.

        All candidates of a round are drawn from the same seeds, which no other round has.
        """
        number = len(self._done)
        if number < len(self._stored):
            self._done.append(self._stored[number])
        else:
            with (
                preemption.finishing("this round of the debias search"),
                self._search.run.log.timed("debias") as figures,
            ):
                figures |= {"round": number, "kind": kind, "requests": sum(map(bool, candidates))}
                counts = self._counts(number, kind, candidates, solve)
                self._done.append(convert({"kind": kind, "trials": counts}, _Round, "round"))
                self._write({})
        return [
            [Trial(factors, counts) for factors, counts in one] for one in self._done[number].trials
        ]

    def finish(self, found: Mixtures) -> None:
        """Files what was found."""
        rows = zip(self._search.requests, *found, strict=True)
        self._write(
            {
                request.source: {
                    "dests": request.dests,
                    "ratios": request.ratios,
                    "factors": factors,
                    "counts": counts,
                    "near": near,
                }
                for request, factors, counts, near in rows
            }
        )

    def _write(self, found: dict[str, Any]) -> None:
        content = {"fingerprint": self._search.fingerprint, "found": found}
        content |= {"rounds": [dataclasses.asdict(one) for one in self._done]}
        checksums.write_json(self._path, content)

    def _counts(
        self, number: int, kind: str, candidates: Candidates, solve: Solve | None
    ) -> list[list[Any]]:
        """Per request and candidate: the factors and the counts."""
        search = self._search
        pairs = [(i, factors) for i, one in enumerate(candidates) for factors in one]
        if solve is None:
            draw = self._offset_images(pairs)
        else:
            draw = self._edited_images(pairs, solve([one[0] for one in candidates]))
        config, images = search.config, search.config.images
        batches = draw(
            self._seeds(number, pairs),
            steps=config.steps,
            guidance=config.guidance,
            batch=config.batch,
            mesh=search.run.mesh,
        )
        counts: list[list[Any]] = [[] for _ in candidates]
        read: list[dict[str, np.ndarray]] = []
        with tqdm(
            total=len(pairs) * images,
            desc=f"debias, {kind} {number + 1}",
            unit="img",
            disable=not search.run.config.progress,
        ) as bar:
            for batch in batches:
                found = search.judge.classify(batch, batch=search.config.batch)
                read += [{name: of[i] for name, of in found.items()} for i in range(len(batch))]
                bar.update(len(batch))
        for place, (i, factors) in enumerate(pairs):
            values = search.values(i)
            mine = read[place * images : (place + 1) * images]
            seen = count_values(np.stack([one[values.group] for one in mine]), values.columns)
            counts[i].append([list(factors), seen.tolist()])
        return counts

    def _offset_images(self, pairs: Sequence[tuple[int, Factors]]) -> Callable[..., Any]:
        """Draws with the offsets mixed by these factors, given seeds and a sampler."""
        search = self._search
        prompts = spans.source_prompts(search.pipeline.encoder.tokenizer, search.requests)
        rows, offsets = [], []
        for i, factors in pairs:
            delta = mixing.mixed(search.memories[i], factors).delta
            columns = np.arange(search.config.images) % len(search.requests[i].templates)
            rows += [(i, column) for column in columns.tolist()]
            offsets += [delta] * search.config.images
        where = tuple(np.array(rows).T)
        return functools.partial(
            offset_batches,
            search.pipeline,
            prompts.ids[where],
            prompts.positions[where],
            np.stack(offsets),
            where=search.where,
        )

    def _edited_images(
        self, pairs: Sequence[tuple[int, Factors]], edited: Pipeline
    ) -> Callable[..., Any]:
        """Draws with the edited model, given seeds and a sampler."""
        search = self._search
        prompts = [
            fill(request.templates[k % len(request.templates)], request.source).prompt
            for request in (search.requests[i] for i, _ in pairs)
            for k in range(search.config.images)
        ]
        return functools.partial(image_batches, edited, prompts)

    def _seeds(self, number: int, pairs: Sequence[tuple[int, Factors]]) -> list[int]:
        search = self._search
        return [
            seed
            for i, _ in pairs
            for seed in drawn_seeds(
                f"{search.requests[i].source}, round {number}",
                search.requests[i].seed,
                search.config.images,
            )
        ]
