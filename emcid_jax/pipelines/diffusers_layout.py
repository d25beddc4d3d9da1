"""Writing the JSON files of a Stable Diffusion folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcid_jax.pipelines.families import SD, Family
from emcid_jax.storage.files import write_atomically


def write_configs(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], family: Family = SD
) -> None:
    """Writes the JSON file of every component that has one."""
    for part, name in family.config_files.items():
        write_json(folder / part / name, configs[part])


def write_index(
    folder: Path, scheduler: str, family: Family = SD, options: Mapping[str, Any] | None = None
) -> None:
    """Writes `model_index.json`, the last file of a folder; `scheduler` is the sampler's class."""
    write_json(folder / "model_index.json", family.index(scheduler, options))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all, keys sorted."""
    write_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
