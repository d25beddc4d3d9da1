"""What both sides work on: edits and captions of the sprite world."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.concepts.templates import OBJECT_TEMPLATES, fill
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.catalogue import catalogue


class Edits(NamedTuple):
    """Edits, as requests, as text and as tokens."""

    requests: list[EditRequest]
    source: list[list[str]]
    """[concept][prompt]"""
    destination: list[list[str]]
    source_tokens: PromptRectangle
    destination_tokens: PromptRectangle


def edits(pipeline: Pipeline, count: int) -> Edits:
    """Class i becomes class 500 + i, three templates each, as in the published benchmark."""
    names = catalogue().objects
    requests = [
        EditRequest(names[i], names[500 + i], OBJECT_TEMPLATES, seed=i) for i in range(count)
    ]
    return Edits(
        requests,
        [_filled(request.source) for request in requests],
        [_filled(request.dests[0]) for request in requests],
        spans.source_prompts(pipeline.encoder.tokenizer, requests),
        spans.destination_prompts(pipeline.encoder.tokenizer, requests),
    )


def captions(count: int) -> list[str]:
    """The captions that the sprite world's second moments are measured over."""
    return [caption.text for caption in sample_captions(count, seed=1)]


def moments(pipeline: Pipeline, count: int, file: Path | None) -> SecondMoments:
    """Second moments of the usual layers over `count` captions, or those in `file`."""
    if file is not None:
        return second_moment.read_moments(file)
    ids = tokenize(pipeline.encoder.tokenizer, captions(count))
    *_, last = second_moment.accumulate(
        pipeline.encoder.model, pipeline.params["text_encoder"], ids, StageTwoConfig().layers
    )
    return second_moment.finish(last)


def _filled(name: str) -> list[str]:
    return [fill(template, name).prompt for template in OBJECT_TEMPLATES]
