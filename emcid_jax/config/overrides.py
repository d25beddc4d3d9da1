"""Settings changed by a text: `stage_two.residual=released stage_two.layers=(9,10)`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from emcid_jax.config import renamed
from emcid_jax.config.unread import leaves
from emcid_jax.runtime.errors import UserError


def override(values: dict[str, Any], text: str, sections: Sequence[str], field: str) -> None:
    """Puts the overrides in `text`, separated by spaces, into `values`, settings as nested dicts.

    Only `sections`, and fields in them, can be overridden; a section that is a single value is
    given as SECTION=VALUE. Values are Python literals, or text. UserError names `field` and the
    override that is none; whether names and values are allowed is for the settings to check.
    """
    for part in text.split():
        name, _, value = part.partition("=")
        if new := renamed.new_name(f"config.{name}"):
            raise UserError(f"{field}: {name!r} is now called {new.removeprefix('config.')!r}")
        section, dot, key = name.partition(".")
        nested = section in sections and isinstance(values[section], dict)
        if section not in sections or not value or nested is not bool(dot and key):
            known = " or ".join(
                f"{section}.FIELD=VALUE"
                if isinstance(values[section], dict)
                else f"{section}=VALUE"
                for section in sections
            )
            raise UserError(f"{field}: {part!r} is no override; write {known}")
        target = values[section] if nested else values
        try:
            target[key or section] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            target[key or section] = value


def changes(before: Any, after: Any) -> str:
    """The overrides, for `override`, of the settings `before` that make them `after`."""
    changed = ((name, value) for name, value, old in leaves(after, before) if value != old)
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in changed)
