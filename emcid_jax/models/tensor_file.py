"""Safetensors files read tensor by tensor.

The library's reader maps the whole file, and what was read of it counts as the process's memory
until the file is closed. Here a tensor is read when it is asked for, into memory of its own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from emcid_jax.errors import UserError

Shape = tuple[int, ...]

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""Types that weights may be stored in. safetensors has others (integers, 8-bit floats)."""

_BITS = {"BOOL": 8, "F4": 4, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "BF16": 16, "C64": 64}
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
        UserError: no such file, or it is damaged; names the first tensor that is cut off or whose
            bytes are not those of its shape.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
            length, size = int.from_bytes(start[:8], "little"), file.stat().st_size
            if start == _POINTER:
                raise UserError(f"{file}: a Git LFS pointer, not the weights; run `git lfs pull`")
            if not 2 <= length <= size - 8:
                raise UserError(f"{file}: not a safetensors file; download it again")
            stream.seek(8)
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        header = Header(
            {name: tuple(entry["shape"]) for name, entry in entries.items()},
            {name: entry["dtype"] for name, entry in entries.items()},
            {name: 8 + length + entry["data_offsets"][0] for name, entry in entries.items()},
        )
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in entries.items()}
        wrong = [
            name
            for name, shape in header.shapes.items()
            if 8 * (ends[name] - header.offsets[name]) != math.prod(shape) * _bits(entries[name])
        ]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give a *.safetensors file or folder") from None
    except OSError as error:
        raise UserError(f"{file}: not readable: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: its header is damaged ({error}); download it again") from error
    if wrong:
        raise UserError(
            f"{file}: its header is damaged ({wrong[0]} has not the bytes of its shape); download "
            "it again"
        )
    cut = [name for name, end in ends.items() if end > size]
    if cut:
        first = min(cut, key=lambda name: ends[name])
        raise UserError(
            f"{file}: cut off after {size} bytes, within {first} ({len(cut)} tensors are missing); "
            "download it again"
        )
    return header


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


def _bits(entry: dict[str, Any]) -> int:
    """Bits of an element; `F8_E4M3`, `U16` and so on say it themselves."""
    kind = str(entry["dtype"])
    return _BITS[kind] if kind in _BITS else int(kind[1:].partition("_")[0])
