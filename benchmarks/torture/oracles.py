"""What an input says, read a second time by other code: json, yaml, csv, safetensors, Pillow.

Each returns what is wrong with what the program made of it, in words, or nothing.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES_ONLY = "only a name"
"""Marks rows of a list of names: they get seeds and templates of their own."""
ALIASES = {"prompts": "templates", "seed_train": "seed", "dests": "dest"}


def requests(raw: bytes, found: Sequence[Any]) -> str:
    """Of a manifest: is one of the ways to read it what was read?"""
    reasons = []
    for name, rows in _readings(raw):
        problem = _rows_differ(rows, found)
        if not problem:
            return ""
        reasons.append(f"{name}: {problem}")
    return "; ".join(reasons) or "nobody else can read it"


def texts(raw: bytes, found: Sequence[str], columns: Sequence[str]) -> str:
    """Of a list of captions or names: is one of the ways to read it what was read?"""
    import yaml

    try:
        text = _decoded(raw)
    except UnicodeDecodeError:
        return "nobody else can read it"
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [row for row in rows if row.strip()]
    ways: list[list[Any]] = [] if text.lstrip()[:1] in ("[", "{") else [rows]
    for read in (
        lambda: json.loads(text),
        lambda: [json.loads(row) for row in rows],
        lambda: yaml.safe_load(text),
        lambda: list(csv.DictReader(io.StringIO(text, newline=""))),
    ):
        try:
            tree = read()
        except (ValueError, yaml.YAMLError, RecursionError, TypeError, csv.Error):
            continue
        ways.append(tree if isinstance(tree, list) else [tree])
    wanted = sorted(map(seen, found))
    for way in ways:
        said = [_text_of(entry, columns) for entry in way]
        if None not in said and sorted(seen(one) for one in said if one and seen(one)) == wanted:
            return ""
    return f"read as {len(found)} texts, {found[:2]!r}, which no way to read it gives"


def _text_of(entry: Any, columns: Sequence[str]) -> str | None:
    if isinstance(entry, dict):
        entry = next((entry[name] for name in columns if name in entry), None)
    return entry if isinstance(entry, str) else None


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def seen(text: str) -> str:
    """Text without what nobody sees at its ends."""
    hidden = [_is_hidden(c) for c in text]
    if all(hidden):
        return ""
    return text[hidden.index(False) : len(text) - hidden[::-1].index(False)]


def tensors(file: Path, found: Mapping[str, np.ndarray]) -> str:
    """Of a safetensors file: the library reads it, and the same values in it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        return f"the library refuses it: {error}"
    for name, array in found.items():
        if name not in arrays:
            return f"{name} is not in it"
        other = arrays[name].astype(np.float32).reshape(array.shape)
        if not np.array_equal(other, array.astype(np.float32), equal_nan=True):
            return f"{name} has other values"
    return ""


def fields(said: Mapping[str, Any], parsed: Mapping[str, Any]) -> str:
    """Of a model's config: what was understood of a field is what the file says."""
    for name in sorted(said.keys() & parsed.keys()):
        if not same(said[name], parsed[name]):
            return f"{name} is {said[name]!r} in the file, understood as {parsed[name]!r}"
    return ""


def byte_pairs(folder: Path, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of lower-case ASCII words by CLIP's byte pair encoding, written anew."""
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    unknown = vocab["<|endoftext|>"]
    rows = (folder / "merges.txt").read_text("utf-8").split("\n")
    pairs = [tuple(row.split()) for row in rows if row.strip() and not row.startswith("#version")]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    return [
        [vocab.get(piece, unknown) for word in text.split() for piece in _pieces(word, ranks)]
        for text in texts
    ]


def special_tokens(folder: Path, role: str) -> set[int]:
    """Ids that the tokenizer's files give a role: `bos_token`, `eos_token`, `pad_token`."""
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    usual = "<|startoftext|>" if role == "bos_token" else "<|endoftext|>"
    names: list[Any] = [usual]
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        with contextlib.suppress(ValueError, AttributeError):
            said = json.loads((folder / file).read_text("utf-8")).get(role)
            names.append(said.get("content") if isinstance(said, dict) else said)
    return {vocab[name] for name in names if isinstance(name, str) and name in vocab}


def _pieces(word: str, ranks: Mapping[Any, int]) -> list[str]:
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        best = min(
            range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), math.inf)
        )
        pair = (parts[best], parts[best + 1])
        if pair not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == pair:
                merged.append("".join(pair))
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return parts


def _readings(raw: bytes) -> Iterable[tuple[str, list[Any]]]:
    """Every way in which the file can be read as rows with fields."""
    import yaml

    try:
        text = _decoded(raw)
    except UnicodeDecodeError:
        return
    for name, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        try:
            yield name, _requests_of(read(text))
        except (ValueError, yaml.YAMLError, RecursionError, TypeError, KeyError, AttributeError):
            continue
    for delimiter in ",;\t|":
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        yield f"csv {delimiter!r}", [{k: v for k, v in row.items() if k} for row in rows]


def _requests_of(tree: Any) -> list[Any]:
    if isinstance(tree, dict) and "requests" in tree:
        defaults = _canonical(tree.get("defaults") or {})
        return [{**defaults, **_canonical(row)} for row in tree["requests"]]
    if isinstance(tree, dict):
        return [_canonical(tree)]
    if isinstance(tree, list) and all(isinstance(item, str) for item in tree):
        return [{"source": item, "task": "erase", NAMES_ONLY: True} for item in tree]
    return [_canonical(row) for row in tree]


def _canonical(row: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(seen(str(k)), seen(str(k))): v for k, v in row.items() if not _blank(v)}


def _rows_differ(rows: Sequence[Mapping[str, Any]], found: Sequence[Any]) -> str:
    rows = [_canonical(row) for row in rows]
    rows = [row for row in rows if row]
    if len(rows) != len(found):
        return f"{len(rows)} requests, {len(found)} were read"
    for row, request in zip(rows, found, strict=True):
        known = {"source", "dest", "task", "seed", "weight"}
        for name in known & row.keys():
            if not _means(row[name], getattr(request, name)):
                return f"{name} is {row[name]!r}, read as {getattr(request, name)!r}"
        for name, default in (("seed", 0), ("weight", 1.0)):
            if name not in row and NAMES_ONLY not in row and getattr(request, name) != default:
                return f"{name} is not given, read as {getattr(request, name)!r}"
        if isinstance(row.get("templates"), list) and list(request.templates) != row["templates"]:
            return f"templates are {row['templates']!r}, read as {request.templates!r}"
    return ""


def _means(said: Any, read: Any) -> bool:
    """Whether a value in a file means what was read of it."""
    if isinstance(read, str):
        return isinstance(said, str) and seen(said).lower() == seen(read).lower()
    if isinstance(read, tuple):
        parts = said if isinstance(said, list) else str(said).split("|")
        return [seen(str(one)) for one in parts] == [seen(one) for one in read]
    if isinstance(said, bool):
        return False
    try:
        return float(said) == float(read)
    except (TypeError, ValueError):
        return False


def same(said: Any, read: Any) -> bool:
    """Equal by type and value; lists count as tuples, whole numbers as numbers."""
    if isinstance(said, list | tuple) and isinstance(read, list | tuple):
        return len(said) == len(read) and all(map(same, said, read))
    if isinstance(read, tuple | list):  # One value for every level.
        return all(same(said, one) for one in read)
    if isinstance(said, bool) or isinstance(read, bool) or said is None or read is None:
        return said is read
    if isinstance(said, int | float) and isinstance(read, int | float):
        return said == read or (
            isinstance(read, float) and abs(said) < 1e300 and float(said) == read
        )
    return type(said) is type(read) and said == read


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not seen(value))


def _is_hidden(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) in ("Cf", "Cc")
