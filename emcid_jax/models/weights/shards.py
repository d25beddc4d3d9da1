"""Which safetensors files in a folder hold a model's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from emcid_jax.runtime.errors import UserError, shown
from emcid_jax.runtime.typed_values import convert
from emcid_jax.storage.text_files import read_json_object

SHARD = re.compile(r"-\d+-of-\d+")
"""What tells the shards of a set apart in their names."""


def weight_files(source: Path, variant: str = "") -> list[Path]:
    """The files that make up `source`.

    Args:
        source: one file, or a folder with one file or one sharded set (`*.index.json`) per variant.
        variant: which; empty takes the plain one, or the only one there is.

    Raises:
        UserError: there is none, several fit, or a shard is missing.
    """
    head = head_file(source, variant)
    return _shards(head) if head.suffix == ".json" else [head]


def head_file(source: Path, variant: str = "") -> Path:
    """The file that tools look for: the weights, or the index of their shards; see `weight_files`.

    `source` itself if it is no folder.
    """
    if not source.is_dir():
        return source
    names = sorted(path.name for path in source.iterdir() if ".safetensors" in path.name)
    indices = [name for name in names if name.endswith(".json") and ".index." in name]
    singles = [name for name in names if name.endswith(".safetensors") and not SHARD.search(name)]
    every = indices + singles
    chosen = [name for name in every if variant_of(name) == variant]
    if not chosen and not variant:
        chosen = every
    if not chosen:
        what = f"*.{variant}.safetensors" if variant else "*.safetensors"
        there = f"there are {', '.join(every)}" if every else "pickled weights are not read"
        raise UserError(f"{source}: holds no {what} file ({there})")
    if len({variant_of(name) for name in chosen}) > 1 or len(set(chosen) & set(singles)) > 1:
        raise UserError(f"{source}: holds several weight files ({', '.join(chosen)}); name one")
    return source / chosen[0]  # A sharded set comes first, as in diffusers.


def variant_of(name: str) -> str:
    """`fp16` of `model.fp16.safetensors` or `model.safetensors.index.fp16.json`."""
    known = ("safetensors", "index", "json")
    return ".".join(part for part in name.split(".")[1:] if part not in known)


def _shards(index: Path) -> list[Path]:
    said = read_json_object(index, "the index of a model's weights").get("weight_map")
    places = convert(said, Mapping[str, str], f"{index}: weight_map")
    for file in set(places.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(
                f"{index}: weight_map names {shown(file)}; it must lie beside the index"
            )
    files = {index.parent / file: key for key, file in sorted(places.items(), reverse=True)}
    if not files:
        raise UserError(f"{index}: weight_map is empty; download it again")
    for file, key in sorted(files.items()):
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {index.name} says it holds {key}")
    return sorted(files)
