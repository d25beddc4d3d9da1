"""Files that hold a checksum over all their own bytes, so that any flipped one is found.

The checksum is a JSON field `"checksum"` somewhere in the file. It is computed with zeros in its
own place. Text of a user cannot pass for the field: JSON escapes its quotes. The same content is
written as the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import replacing, require_readable, write_atomically
from emcid_jax.storage.json_text import loads

UNSEALED = "0" * 64
"""Value of the field `checksum` in what `sealed` takes."""

_FIELD = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')


def sealed(content: bytes) -> bytes:
    """`content` with the checksum filled in. ValueError if it has no field for it."""
    return _filled(content, hashlib.sha256(content).hexdigest())


def is_intact(content: bytes) -> bool:
    """Whether `content` is what `sealed` gave, to the byte."""
    found = _FIELD.search(content)
    if found is None:
        return False
    seal = found[1].decode()
    return hashlib.sha256(_filled(content, UNSEALED)).hexdigest() == seal


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with a checksum, by one rename."""
    fields = {**content, "checksum": UNSEALED}
    text = json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomically(path, sealed(f"{text}\n".encode()))


def read_json(path: Path, remedy: str, older: bool = False) -> dict[str, Any]:
    """The JSON object that `write_json` wrote.

    Args:
        path: the file.
        remedy: what to do if it is not to be read, for messages.
        older: read a file without a checksum, too, as earlier versions wrote it.

    Raises:
        UserError: a byte was changed, it is no JSON object, or not there.
    """
    require_readable(path)
    try:
        content = path.read_bytes()
        found = loads(content)
        if "checksum" in found or not older:
            if not is_intact(content):
                raise ValueError("its checksum does not fit")
            del found["checksum"]
        return dict(found)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); {remedy}") from error


class Tensors(NamedTuple):
    """The content of a safetensors file."""

    arrays: dict[str, np.ndarray]
    about: dict[str, str]
    """Its metadata, without the checksum."""
    sealed: bool
    """Whether it carries a checksum, which then fits."""


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes a safetensors file with metadata and a checksum, by one rename."""
    with replacing(path) as temporary:
        # The library writes an array's memory as it lies, whatever its order.
        rows = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(rows, temporary, metadata={**about, "checksum": UNSEALED})
        with temporary.open("r+b") as file:
            head = _in_one_order(_head(file))
            digest = _digest(head, file)
            file.seek(0)
            file.write(_filled(head, digest))


def read_tensors(path: Path, kind: str, remedy: str) -> Tensors:
    """Reads a safetensors file and its checksum, if it has one.

    Args:
        path: the file.
        kind: what it should be, for messages.
        remedy: what to do if it is not, for messages.

    Raises:
        UserError: a byte was changed, or the library refuses the file.
    """
    about = read_about(path, kind, remedy)
    try:
        with safe_open(path, framework="np", backend="pread") as file:
            return about._replace(arrays=file.get_tensors())
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(f"{path}: no {kind}, or damaged ({error}); {remedy}") from error


def read_about(path: Path, kind: str, remedy: str) -> Tensors:
    """As `read_tensors`, every byte checked, but without the arrays."""
    try:
        require_readable(path)
        with safe_open(path, framework="np", backend="pread") as file:
            about = dict(file.metadata() or {})
        if about.pop("checksum", None) is None:
            return Tensors({}, about, False)
        with path.open("rb") as file:
            head = _head(file)
            found = _FIELD.search(head)
            if found is None or found[1].decode() != _digest(_filled(head, UNSEALED), file):
                raise ValueError("its checksum does not fit")
        return Tensors({}, about, True)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: no {kind}, or damaged ({error}); {remedy}") from error


def _filled(content: bytes, seal: str) -> bytes:
    found = _FIELD.search(content)
    if found is None:
        raise ValueError("no field for a checksum")
    return content[: found.start(1)] + seal.encode() + content[found.end(1) :]


def _head(file: BinaryIO) -> bytes:
    """The header of a safetensors file, with the eight bytes that say how long it is."""
    length = file.read(8)
    return length + file.read(int.from_bytes(length, "little"))


def _digest(head: bytes, rest: BinaryIO) -> str:
    digest = hashlib.sha256(head)
    while block := rest.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _in_one_order(head: bytes) -> bytes:
    """The library writes metadata in random order; tensors are in one order already."""
    entries = json.loads(head[8:])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    return head[:8] + text.ljust(len(head) - 8)
