"""Inputs changed at random: bytes, values of a tree, and headers of safetensors files."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from typing import Any

from benchmarks.torture.words import KINDS, TOKENS, VALUES


def mangled(rng: random.Random, raw: bytes) -> bytes:
    """`raw` after one to three accidents."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        upto = min(len(data), at + rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at:upto]
            case 3:
                data[at:at] = data[at:upto]
            case 4:
                data[at:at] = rng.choice(TOKENS)
            case 5:
                data[at:upto] = rng.choice(TOKENS)
            case _:
                del data[at:]
    return bytes(data)


def altered(rng: random.Random, tree: Any) -> Any:
    """A JSON tree with one or two values or keys changed."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2))):
        _alter(rng, tree)
    return tree


def nested(rng: random.Random, depth: int) -> Any:
    """A value under so many lists or objects."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def safetensors_altered(rng: random.Random, raw: bytes) -> bytes:
    """A safetensors file with something changed in its header, or after it."""
    (length,) = struct.unpack("<Q", raw[:8])
    head, data = raw[8 : 8 + length], raw[8 + length :]
    choice = rng.randrange(10)
    if choice == 0:
        return mangled(rng, raw)
    if choice == 1:
        length = rng.choice((0, 1, length - 1, length + 1, len(raw), 2**40, 2**63))
        return struct.pack("<Q", length) + head + data
    if choice == 2:
        return raw[: rng.randrange(len(raw))]
    if choice == 3:
        return raw + bytes(rng.randrange(1, 99))
    if choice == 4:
        place = rng.randrange(len(data))
        return raw[: 8 + length + place] + bytes([rng.randrange(256)]) + raw[9 + length + place :]
    if choice == 5:
        return _packed(mangled(rng, head), data)
    entries = json.loads(head)
    names = [name for name in entries if name != "__metadata__"]
    entry, other = entries[rng.choice(names)], entries[rng.choice(names)]
    match rng.randrange(7):
        case 0:
            entry["dtype"] = rng.choice(KINDS)
        case 1:
            turned = entry["shape"][::-1]
            entry["shape"] = rng.choice((other["shape"], [], turned, [-1], [0], [2**62, 4], "x"))
        case 2:
            first, last = entry["data_offsets"]
            shift = rng.choice((4, -4, 1, -first))
            entry["data_offsets"] = [first + shift, last + shift]
        case 3:
            others = (other["data_offsets"], [], [0], [5, 1], [-4, 4], ["0", "4"], None)
            entry["data_offsets"] = rng.choice(others)
        case 4:
            entries[rng.choice(("x", "", "a.weight", "\ud800"))] = entries.pop(rng.choice(names))
        case 5:
            return _packed(json.dumps(altered(rng, entries)).encode("utf-8", "surrogatepass"), data)
        case _:
            del entries[rng.choice(names)]
    return _packed(json.dumps(entries).encode("utf-8", "surrogatepass"), data)


def _packed(head: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head + data


def _alter(rng: random.Random, tree: Any) -> None:
    places = list(_places(tree))
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "__class__", f"{key} ", f"{key}s", "\x1b[2J"))] = (
                holder.pop(key)
            )
        case 2 if isinstance(holder, list):
            with contextlib.suppress(RecursionError):  # It was nested before.
                holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        case 3:
            holder[key] = nested(rng, rng.choice((3, 50, 400)))
        case 4:
            holder[key] = _other_type(holder[key])
        case _:
            holder[key] = rng.choice(VALUES)


def _other_type(value: Any) -> Any:
    """The same in another type: what people write by mistake."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return [value]
    return value[0] if isinstance(value, list) and value else str(value)


def _places(tree: Any) -> Any:
    """Every (container, key) of the tree."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])
