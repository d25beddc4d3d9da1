"""What an edit does, measured in text space alone: no image is drawn.

How near the edits come to their targets, how much unedited names and captions drift, and how well
conditioned the solve was.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from emcid_jax.concepts import spans
from emcid_jax.concepts.names import normalised
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.diagnostics.predicted_conflicts import Prediction, kept_requests
from emcid_jax.editing.diagnostics.targets_reached import Reach, answer, question
from emcid_jax.editing.encoder.sites import Site
from emcid_jax.editing.encoder.whole_prompts import Prompts, TextChange, text_changes
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_two import solve
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize

WORST = 20
"""Captions named in a report."""
_WORD = re.compile(r"[\w-]+")


class Neighbour(NamedTuple):
    """The unedited name nearest to an edited one in key space, and its drift."""

    name: str
    similarity: float
    drift: float


class Kept(NamedTuple):
    """A concept nobody edits; changes are relative to what they change, means over prompts."""

    name: str
    drift: float
    """Of the state at block L at the name's last token."""
    features: float
    """Of the final features at the end token."""
    predicted: float
    """What `predicted_conflicts.predict` expected for `drift`."""
    nearest: str
    """The edited source most like it."""
    similarity: float


class Drift(NamedTuple):
    """|F' - F| / |F| of captions' final features."""

    count: int
    mean: float
    median: float
    p95: float
    most: float


class Layer(NamedTuple):
    """One edited layer of the solve."""

    layer: int
    form: str
    condition: float
    asked: float
    left: float
    norm: float
    """|dW| (Frobenius)."""
    change: float
    """|dW| / |W|."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextSpace:
    """All of it."""

    reached: tuple[Reach, ...]
    """Per concept, the farthest from its target first."""
    neighbours: dict[str, Neighbour]
    """By source; empty without unedited names."""
    kept: tuple[Kept, ...]
    """By drift, the worst first."""
    apart: Drift | None
    """Captions that name no edited source; None if there are none."""
    naming: Drift | None
    """Captions that do."""
    worst: tuple[tuple[str, float], ...]
    """Captions naming no edited source that drift most."""
    layers: tuple[Layer, ...]
    distance: tuple[float, float]
    """Root mean square of |z - h| before and after."""
    prediction: Prediction


def measure(
    concepts: ConceptBank,
    encoder: TextEncoder,
    where: Sequence[Site],
    edit: WeightEdit,
    moments: SecondMoments,
    config: StageTwoConfig,
    keep: Sequence[str],
    captions: Sequence[str],
) -> TextSpace:
    """Measures an edit.

    Args:
        concepts: the bank that it is of.
        encoder: the pristine text encoder.
        where: sites of the bank's memories.
        edit: what `bank.solve.solve` gave for this encoder.
        moments: the second moments used.
        config: Stage II's settings used.
        keep: names that the edit should not change; edited ones are left out.
        captions: a corpus that shall stay as it is.

    Raises:
        UserError: an empty bank, or a name that has no place in a prompt.
    """
    edited = solve.apply_edit(encoder.params, edit)
    sources = {normalised(concept.request.source) for concept in concepts.active}
    keep = [name for name in dict.fromkeys(keep) if normalised(name) not in sources]
    asked = question(concepts, encoder, where)
    requests = kept_requests(keep, asked.requests[0].templates)
    neighbours = spans.source_prompts(encoder.tokenizer, requests)
    sets = (
        asked.source,
        asked.destination,
        Prompts(neighbours.ids[neighbours.mask], neighbours.positions[neighbours.mask]),
        Prompts.whole(tokenize(encoder.tokenizer, captions)),
    )
    changes = text_changes(encoder, encoder.params, edited, sets, asked.block)
    source, destination, others, corpus = changes
    reached = answer(asked, source, destination)
    prediction = predicted_conflicts.predict(concepts, encoder, where, moments, config, keep)
    kept = _kept(keep, others, prediction)
    drift = corpus.drift
    named = names_any(captions, sorted(sources))
    apart = np.flatnonzero(~named)
    worst = apart[np.argsort(-drift[apart], kind="stable")[:WORST]]
    report = edit.report
    return TextSpace(
        tuple(sorted(reached, key=lambda one: -one.left)),
        _neighbours(prediction, kept),
        kept,
        _summary(drift[~named]),
        _summary(drift[named]),
        tuple((captions[int(i)], float(drift[i])) for i in worst),
        _layers(edit, report),
        (report.distance_before, report.distance_after),
        prediction,
    )


def names_any(captions: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Which captions have one of the normalised names among their words."""
    wanted = [_words(name) for name in names]
    return np.array([any(name in text for name in wanted) for text in map(_words, captions)], bool)


def as_json(found: TextSpace) -> dict[str, Any]:
    """JSON values of all but the whole key map, of which the most similar part is given."""
    keys = predicted_conflicts.most_similar(found.prediction.keys)
    return {
        "distance": {"before": found.distance[0], "after": found.distance[1]},
        "reached": [one._asdict() for one in found.reached],
        "neighbours": {name: one._asdict() for name, one in found.neighbours.items()},
        "kept": [one._asdict() for one in found.kept],
        "captions": {
            "apart": found.apart._asdict() if found.apart else None,
            "naming": found.naming._asdict() if found.naming else None,
            "worst": [{"caption": text, "drift": drift} for text, drift in found.worst],
        },
        "layers": [one._asdict() for one in found.layers],
        "collisions": [pair._asdict() for pair in found.prediction.collisions],
        "contradictions": list(found.prediction.contradictions),
        "keys": keys._asdict() | {"cosines": keys.cosines.round(4).tolist()},
    }


def _words(text: str) -> str:
    """The words of a text, each between spaces, as names are compared."""
    return f" {' '.join(_WORD.findall(normalised(text)))} "


def _kept(keep: Sequence[str], change: TextChange, prediction: Prediction) -> tuple[Kept, ...]:
    """From what the edit does to the names' prompts, as many for each."""
    if not keep:
        return ()
    before, after = (
        [part.reshape(len(keep), -1, part.shape[1]).mean(1) for part in states]
        for states in change[:2]
    )
    drift, features = (_relative(a, b) for a, b in zip(before, after, strict=True))
    expected = {neighbour.name: neighbour for neighbour in prediction.kept}
    found = [
        Kept(
            name,
            float(drift[i]),
            float(features[i]),
            expected[name].drift,
            expected[name].nearest,
            expected[name].similarity,
        )
        for i, name in enumerate(keep)
    ]
    return tuple(sorted(found, key=lambda one: -one.drift))


def _relative(
    before: Float64[np.ndarray, "name dim"], after: Float64[np.ndarray, "name dim"]
) -> Float64[np.ndarray, " name"]:
    return np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)


def _neighbours(prediction: Prediction, kept: Sequence[Kept]) -> dict[str, Neighbour]:
    """Per edited source the kept name whose key is most like its own."""
    if not kept:
        return {}
    keys, drift = prediction.keys, {one.name: one.drift for one in kept}
    count = len(keys.columns)
    nearest = count + keys.cosines[count:].argmax(0)
    return {
        source: Neighbour(keys.rows[row], float(keys.cosines[row, i]), drift[keys.rows[row]])
        for i, (source, row) in enumerate(zip(keys.columns, nearest.tolist(), strict=True))
    }


def _summary(drift: Float64[np.ndarray, " caption"]) -> Drift | None:
    if not drift.size:
        return None
    middle, high = np.quantile(drift, [0.5, 0.95])
    return Drift(drift.size, float(drift.mean()), float(middle), float(high), float(drift.max()))


def _layers(edit: WeightEdit, report: StageTwoReport) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            one.layer,
            one.form,
            one.condition,
            one.asked,
            one.left,
            float(np.linalg.norm(edit.deltas[one.layer])),
            one.change,
        )
        for one in report.layers
    )
