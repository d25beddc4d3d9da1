"""Stage I's presets by name: `--config=own_model:balanced`.

What each costs and gives: docs/presets.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from emcid_jax.config.schema import StageOneConfig
from emcid_jax.runtime.errors import UserError


def _text_first(published: StageOneConfig) -> StageOneConfig:
    """The text loss leads most of the way, so few steps of the published loss are left."""
    return dataclasses.replace(published, text_steps=60, steps=10)


def _balanced(published: StageOneConfig) -> StageOneConfig:
    """The attention loss has no noise of its own, so its steps may be longer, and it is about 1 at
    the start, so the text loss beside it needs more weight."""
    return dataclasses.replace(
        published,
        objective="attention",
        learning_rate=2 * published.learning_rate,
        text_loss_scale=10 * published.text_loss_scale,
    )


def _fast(published: StageOneConfig) -> StageOneConfig:
    return dataclasses.replace(published, objective="text-only", steps=60)


PRESETS: Mapping[str, Callable[[StageOneConfig], StageOneConfig]] = MappingProxyType(
    {
        "published": lambda published: published,
        "text_first": _text_first,
        "balanced": _balanced,
        "fast": _fast,
    }
)
"""Name -> from the published settings of a model to those of the preset."""


def preset(name: str, published: StageOneConfig) -> StageOneConfig:
    """Stage I's settings by the name of a preset: `published`, `text_first`, `balanced` or `fast`.

    Args:
        name: its name.
        published: the settings of the published objective that fit the model.

    Raises:
        UserError: for a name that is none.
    """
    if name not in PRESETS:
        raise UserError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}")
    return PRESETS[name](published)
