"""Other forms of an edited name: does an edit of "tench" change "tenches", too? No image is drawn.

A prompt reads as the destination if its final features, edited, are nearer to the destination's
clean ones than to its own clean ones, in sentences that the edit never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from emcid_jax.concepts.forms import joined, plural, spaced
from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.editing.encoder.whole_prompts import Prompts, text_changes
from emcid_jax.evaluation.benchmarks import erase
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.evaluation.judges.labels import OBJECT, LabelGroup
from emcid_jax.evaluation.statistics.evenly import evenly
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.pipeline import Pipeline

MOST = 40
"""Requests that are asked, spread evenly: for each, a prompt per form and sentence."""


class FormRecall(NamedTuple):
    """How often one form of the names does what the edit says."""

    form: str
    names: int
    """Names that it changes to something that no request names."""
    recall: float
    """Share of their prompts that read as the destination."""


def _swapped(name: str) -> str:
    """Two letters in the middle of the longest word swapped; a name of single letters as it is."""
    word = max(name.split(), key=len)
    if (middle := len(word) // 2) == 0:
        return name
    swapped = word[middle] + word[middle - 1]
    return name.replace(word, word[: middle - 1] + swapped + word[middle + 1 :])


ITSELF = "the name itself"
FORMS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "plural": plural,
        "possessive": lambda name: f"{name}'s",
        "hyphen for space": lambda name: name.replace(" ", "-"),
        "space for hyphen": spaced,
        "written together": joined,
        "first word left out": lambda name: name.split(" ", 1)[-1],
        "two letters swapped": _swapped,
    }
)
"""What becomes of a name."""
SYNONYM = "another name of the same thing"


def measure(
    before: Pipeline,
    after: Pipeline,
    requests: Sequence[EditRequest],
    groups: Mapping[str, LabelGroup],
) -> tuple[FormRecall, ...]:
    """Recall of the name itself, of its other forms, and of another name that the judge knows.

    Args:
        before: the clean model.
        after: the edited one.
        requests: all requests of the edit; those of task `debias` have several destinations and
            are left out, and so are destinations without a name.
        groups: the judge's labels, which list other names of the same object.

    Returns:
        The forms that change any name; nothing if the text encoders are the same.
    """
    encoders = [one for one in before.encoders if after.params[one.name] is not one.params]
    asked = [one for one in requests if one.task != "debias" and one.dests[0]]
    if not encoders or not asked:
        return ()
    taken = {normalised(one.source) for one in requests}
    asked = evenly(asked, MOST)
    sets = {ITSELF: [(one, one.source) for one in asked]}
    for form, change in FORMS.items():
        sets[form] = _other([(one, change(one.source)) for one in asked], taken)
    sets[SYNONYM] = _other([(one, _synonym(one, groups)) for one in asked], taken)
    pairs = [pair for part in sets.values() for pair in part]
    closer = reads_as_told(encoders, after.params, pairs)
    ends = np.cumsum([len(part) for part in sets.values()])[:-1]
    shares = zip(sets.items(), np.split(closer, ends), strict=True)
    return tuple(
        FormRecall(form, len(part), float(found.mean())) for (form, part), found in shares if part
    )


def _other(
    pairs: Sequence[tuple[EditRequest, str]], taken: set[str]
) -> list[tuple[EditRequest, str]]:
    """Those whose form is another word than any source."""
    return [(one, form) for one, form in pairs if form and normalised(form) not in taken]


def _synonym(request: EditRequest, groups: Mapping[str, LabelGroup]) -> str:
    """Another name of the object whose name the request gives; empty if there is none."""
    objects = groups.get(OBJECT)
    label = objects.find(request.source) if objects and request.task == "update" else None
    if objects is None or label is None:
        return ""
    own = normalised(request.source)
    return next((name for name in objects.labels[label] if normalised(name) != own), "")


def reads_as_told(
    encoders: Sequence[TextEncoder],
    edited: Mapping[str, Any],
    pairs: Sequence[tuple[EditRequest, str]],
) -> Float64[np.ndarray, " pair"]:
    """Of every request and form of its name: the share of sentences that read as the destination.

    Args:
        encoders: the clean text encoders.
        edited: their edited parameters by name.
        pairs: requests, each with a form.
    """
    own = [prompt for request, form in pairs for prompt in _prompts(request, form)]
    goal = [prompt for request, _ in pairs for prompt in _prompts(request, request.dests[0])]
    prompts = list(dict.fromkeys([*own, *goal]))
    row = {prompt: i for i, prompt in enumerate(prompts)}
    mine, wanted = ([row[prompt] for prompt in some] for some in (own, goal))
    nearer = np.zeros(len(own))
    for encoder in encoders:
        every = Prompts.whole(tokenize(encoder.tokenizer, prompts))
        pair = encoder.params, edited[encoder.name]
        (change,) = text_changes(encoder, *pair, [every], 0)
        clean, now = change.before.pooled, change.after.pooled[mine]
        gone, left = (np.square(now - clean[some]).sum(1) for some in (mine, wanted))
        nearer += (gone - left) / np.square(clean).sum()  # Encoders of any width count alike.
    return (nearer > 0).reshape(len(pairs), -1).mean(1)


def _prompts(request: EditRequest, name: str) -> list[str]:
    """Five sentences about `name` that the edit never saw."""
    sentences = erase.SENTENCES if request.task == "erase" else SENTENCES
    return [fill(sentence, name).prompt for sentence in sentences]
