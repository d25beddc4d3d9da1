"""What a run left behind, as values that can be compared: times are not part of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

IGNORED = frozenset((".lock", "metrics.jsonl", "report.html"))
"""A lock; a log with times; a page that shows them."""
_TIMES = frozenset(("seconds", "time", "wall_seconds", "total_seconds"))


def content(folder: Path) -> dict[str, str]:
    """Relative path -> hash of what the file says, for every file below `folder`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {
        str(path.relative_to(folder)): _hash(path, folder)
        for path in files
        if path.name not in IGNORED
    }


def left_over(folder: Path) -> list[str]:
    """Temporary files that nobody removed."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob(".*.tmp"))]


def differences(found: dict[str, str], wanted: dict[str, str]) -> str:
    """What differs, in words; empty if nothing does."""
    parts = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "different": sorted(p for p in found.keys() & wanted.keys() if found[p] != wanted[p]),
    }
    return "; ".join(f"{name}: {', '.join(paths[:5])}" for name, paths in parts.items() if paths)


def _hash(path: Path, folder: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".json":
        raw = raw.replace(str(folder).encode(), b"")
        raw = json.dumps(_without_times(json.loads(raw)), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
