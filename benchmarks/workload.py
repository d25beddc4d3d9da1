"""What both sides work on: edits and captions of the sprite world."""

from __future__ import annotations

from typing import NamedTuple

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import PromptRectangle
from emcid_jax.concepts.templates import OBJECT_TEMPLATES, fill
from emcid_jax.pipeline import Pipeline
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
        spans.source_prompts(pipeline.tokenizer, requests),
        spans.destination_prompts(pipeline.tokenizer, requests),
    )


def captions(count: int) -> list[str]:
    """The captions that the sprite world's second moments are measured over."""
    return [caption.text for caption in sample_captions(count, seed=1)]


def _filled(name: str) -> list[str]:
    return [fill(template, name).prompt for template in OBJECT_TEMPLATES]
