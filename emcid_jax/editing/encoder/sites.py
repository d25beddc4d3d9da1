"""Where an edit writes: one block in each text encoder that is edited.

A memory holds the states that are wanted at all sites, one after the other, and at each site those
of all edited tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax import Array
from jaxtyping import Float

from emcid_jax.config import StageOneConfig
from emcid_jax.models.text.clip import ClipTextModel
from emcid_jax.models.text.encoder import FIRST, SECOND
from emcid_jax.runtime.errors import UserError

States = TypeVar("States", np.ndarray, Array)


class Site(NamedTuple):
    """A place that offsets are added to."""

    encoder: str
    """The encoder's part of the model."""
    layer: int
    """Block L, whose output changes."""
    width: int
    """Numbers of one token's state."""


def sites(config: StageOneConfig, texts: Mapping[str, ClipTextModel]) -> tuple[Site, ...]:
    """The sites that Stage I with `config` optimises, in the order of the model's `texts`.

    Raises:
        UserError: an encoder has no such block, or nothing reads what the block computes.
    """
    asked = {FIRST: ("layer", config.layer), SECOND: ("second_layer", config.second_layer)}
    chosen = [name for name in texts if config.encoders in ("all", name)]
    if not chosen:
        raise UserError(
            f"config.stage_one.encoders is {config.encoders!r}, but the model has "
            f"{' and '.join(texts)}; set it to 'all'"
        )
    found = []
    for name in chosen:
        field, layer = asked[name]
        size = texts[name].config
        last = last_block(texts, name)
        if layer > last:
            read = "" if len(texts) == 1 else "; the denoiser does not read later ones"
            raise UserError(
                f"config.stage_one.{field} is {layer}, but {name} has blocks 0 to {last} to edit"
                f"{read}"
            )
        found.append(Site(name, layer, size.hidden_size))
    return tuple(found)


def last_block(texts: Mapping[str, ClipTextModel], encoder: str) -> int:
    """The last block that the denoiser reads: of several encoders the last but one."""
    return texts[encoder].config.num_hidden_layers - (1 if len(texts) == 1 else 2)


def filed_sites(
    settings: Mapping[str, Any], texts: Mapping[str, ClipTextModel], memory: object
) -> tuple[Site, ...]:
    """The sites of a memory, from Stage I's settings as its provenance has them.

    UserError naming `memory`, its file, if the model has no such places.
    """
    fields = ("layer", "second_layer", "encoders")
    try:
        return sites(StageOneConfig(**{f: settings[f] for f in fields if f in settings}), texts)
    except UserError as error:
        said = str(error).removeprefix("config.")
        raise UserError(f"{memory}: {said}; use the model that it was found in") from None


def by_site(
    states: Float[States, "*row size"], where: tuple[Site, ...]
) -> dict[str, Float[States, "*row edited dim"]]:
    """States of all sites taken apart: encoder -> those of its edited tokens."""
    edited = states.shape[-1] // sum(site.width for site in where)
    found, begin = {}, 0
    for site in where:
        end = begin + edited * site.width
        found[site.encoder] = states[..., begin:end].reshape(*states.shape[:-1], edited, site.width)
        begin = end
    return found
