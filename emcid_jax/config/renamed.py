"""Settings and tasks that had another name: refused with the new one, understood in older files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from emcid_jax.runtime.errors import UserError

SETTINGS = {
    "stage_two.moment_weight": "preservation_weight",
    "stage_two.preserve_weight": "protected_weight",
    "stage_two.solve": "solve_on",
    "uce.moment_weight": "preservation_weight",
    "uce.preserve_weight": "protected_weight",
    "config.lasts": "last_layers",
    "config.most": "max_requests",
    "config.judged": "max_judged",
    "config.compile_cache": "run.compile_cache",
    "config.progress": "run.progress",
}
"""Old name after its section (`config`: a field of the task itself) -> new name."""
TASKS = {"layer_pairs": "layer_ranges"}

_OLD = {f"{old.partition('.')[0]}.{new}": old.partition(".")[2] for old, new in SETTINGS.items()}


def new_name(field: str) -> str | None:
    """The new name of a dotted field, or None if the field was not renamed.

    Example: new_name("config.base.stage_two.solve") == "config.base.stage_two.solve_on"
    """
    *sections, name = field.split(".")
    new = SETTINGS.get(f"{(sections or [''])[-1]}.{name}")
    return ".".join([*sections, new]) if new else None


def refuse(values: Mapping[str, Any], name: str = "config") -> None:
    """UserError naming the first setting in the nested `values` that has an old name."""
    for key, value in values.items():
        field = f"{name}.{key}"
        if new := new_name(field):
            raise UserError(f"{field} is now called {new}")
        if isinstance(value, Mapping):
            refuse(value, field)


def explained(message: str) -> str:
    """Python's message about an unknown name in a config file, and what it is called now."""
    for name in re.findall(r"['\"](\w+)['\"]", message):
        for old, new in SETTINGS.items():
            if old.endswith(f".{name}"):
                return f"{message}; {name!r} is now called {new!r}"
    return message


def current(values: Any, section: str = "config") -> Any:
    """Settings as an older version wrote them (JSON values), with today's names."""
    return _renamed(values, section, SETTINGS)


def older(values: Any, section: str = "config") -> Any:
    """What `current` was made from: hashes of older versions are of these names.

    Texts of overrides (`stage_two.solve_on=device`) take the old names too.
    """
    return _renamed(values, section, _OLD)


def _renamed(values: Any, section: str, names: Mapping[str, str]) -> Any:
    if isinstance(values, Mapping):
        return {
            names.get(f"{section}.{key}", key): _renamed(value, key, names)
            for key, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [_renamed(value, section, names) for value in values]
    if isinstance(values, str) and "=" in values:
        for name, other in names.items():
            part = name.partition(".")[0]
            values = re.sub(rf"\b{re.escape(name)}=", f"{part}.{other}=", values)
    return values
