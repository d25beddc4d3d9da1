"""Prompt templates: sentences with one slot `{}` for a concept's name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

SLOT = "{}"

OBJECT_TEMPLATES = ("An image of {}", "A photo of {}", "{}")
ARTIST_TEMPLATES = ("painting by {}", "artwork by {}", "style of {}")
DEBIAS_TEMPLATES = ("a photo of {}", "an image of {}", "{}")

TEMPLATE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"object": OBJECT_TEMPLATES, "artist": ARTIST_TEMPLATES, "debias": DEBIAS_TEMPLATES}
)
"""The published editing templates by name (docs/requests.md); a file may name a set."""


class FilledPrompt(NamedTuple):
    """A template with a name in its slot; `prompt[start:end]` is the name."""

    prompt: str
    start: int
    end: int


def fill(template: str, name: str) -> FilledPrompt:
    """Puts `name` in the template's first slot and says where it stands.

    Not `str.format`: names and templates may hold other braces. A template without a slot is a
    literal sentence and comes back unchanged with the empty range (0, 0).
    """
    start = template.find(SLOT)
    if start < 0:
        return FilledPrompt(template, 0, 0)
    prompt = template[:start] + name + template[start + len(SLOT) :]
    return FilledPrompt(prompt, start, start + len(name))


def slot_count(template: str) -> int:
    """Number of `{}` in a template."""
    return template.count(SLOT)


def template_from(prompt: str, name: str) -> str:
    """The template that gives `prompt` when filled with `name`; the prompt itself if it lacks it.

    The last occurrence is the slot: published prompts end with the name, and a name such as "Art"
    also occurs in the words before it.
    """
    start = prompt.rfind(name)
    if not name or start < 0:
        return prompt
    return prompt[:start] + SLOT + prompt[start + len(name) :]
