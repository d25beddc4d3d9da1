"""Safetensors files read tensor by tensor.

The library opens the file and says what is in it: what it refuses is refused. Tensors are read
here, because the library maps the whole file, and what was read of it counts as the process's
memory until the file is closed. Here a tensor is read when it is asked for, into memory of its own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import require_readable

Shape = tuple[int, ...]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Types that weights may be stored in. safetensors has others (integers, 8-bit floats)."""

_BITS = {"BOOL": 8, "BF16": 16}
_POINTER = b"version https://git-lfs"


class Header(NamedTuple):
    """What a safetensors file says about its tensors, without their content."""

    shapes: dict[str, Shape]
    kinds: dict[str, str]
    """Type of each tensor: F16, BF16, F32, ..."""
    offsets: dict[str, int]
    """First byte of each tensor, counted from the start of the file."""


def read_header(file: Path) -> Header:
    """Names, shapes, types and places of the tensors in a safetensors file.

    Raises:
        UserError: no such file, or one that the safetensors library refuses.
    """
    require_readable(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a *.safetensors file or folder")
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
        if start == _POINTER:
            raise UserError(f"{file}: a Git LFS pointer, not the weights; run `git lfs pull`")
        with safe_open(file, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            kinds = {name: found.get_dtype() for name, found in slices.items()}
    except OSError as error:
        raise UserError(f"{file}: not readable: {error}") from error
    except SafetensorError as error:
        raise UserError(f"{file}: {_diagnosis(file, str(error))}") from error
    offsets, place = {}, 8 + int.from_bytes(start[:8], "little")
    for name, shape in shapes.items():  # In the order of the file, which has no holes.
        offsets[name] = place
        place += math.prod(shape) * _bits(kinds[name]) // 8
    return Header(shapes, kinds, offsets)


def read_tensor(file: Path, header: Header, name: str) -> np.ndarray:
    """One tensor of a type in FLOATS, as it is stored.

    Raises:
        UserError: the file changed since its header was read, or the disk fails.
    """
    kind, shape = np.dtype(FLOATS[header.kinds[name]]), header.shapes[name]
    size = math.prod(shape) * kind.itemsize
    try:
        content = np.fromfile(file, np.uint8, size, offset=header.offsets[name])
    except OSError as error:
        raise UserError(f"{file}: {name} is not readable: {error}") from error
    if len(content) != size:
        raise UserError(f"{file}: cut off within {name} while it was read; download it again")
    return content.view(kind).reshape(shape)


def _bits(kind: str) -> int:
    """Bits of an element; `F8_E4M3`, `U16` and so on say it themselves."""
    return _BITS[kind] if kind in _BITS else int(kind[1:].partition("_")[0])


def _diagnosis(file: Path, said: str) -> str:
    """What is wrong with a file that the library refuses with the words `said`, and what helps."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length)) if length <= size - 8 else {}
        entries.pop("__metadata__", None)
        ends = {8 + length + entry["data_offsets"][1]: name for name, entry in entries.items()}
        end = max(ends, default=size)
        if size < end:
            first = ends[min(place for place in ends if place > size)]
            return f"cut off after {size} of {end} bytes, within {first}; download it again"
        if size > end:
            return (
                f"{size - end} bytes lie behind its last tensor; download it again, or cut them "
                f"off with `truncate -s {end}`"
            )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return f"not a safetensors file, or its header is damaged ({said}); download it again"
