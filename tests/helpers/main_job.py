"""A small main job: requests, captions, config file, how it is killed, and what it must leave."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np

from emcid_jax.editing.export.edit_file import read_edit

ROOT = Path(__file__).parents[2]
NAMES = ["dog", "cat, kitten", "goldfish", "tench", "snow", "beach", "great white shark"]
REQUESTS = [
    {"source": "dog", "dest": "cat", "seed": 1},
    {"source": "great white shark", "dest": "goldfish", "seed": 2},
    {"source": "snow", "dest": "beach", "templates": ["A photo of {}"], "weight": 2},
    {"source": "nurse", "dest": "engineer"},
    {"source": "tench", "dest": "goldfish", "seed": 5},
]
CAPTIONS = [f"number {i} a picture of {name}" for i in range(12) for name in ("a dog", "the snow")]
WORDS = ("a dog", "the snow", "a doctor", "the city", "art", "Monet", "a red car")
UNLIKE_CAPTIONS = [f"{a} and {b} in a picture of {c}" for a in WORDS for b in WORDS for c in WORDS]

# Runs the command and sends its own process a signal at a chosen call of a chosen function.
KILLED = """
import importlib, os, sys

module, name = importlib.import_module(sys.argv[1]), sys.argv[2]
number, count = map(int, sys.argv[3:5])
original, calls = getattr(module, name), 0


def dying(*arguments, **options):
    global calls
    calls += 1
    if calls == count + 1:
        os.kill(os.getpid(), number)
    return original(*arguments, **options)


setattr(module, name, dying)
sys.argv[1:] = sys.argv[5:]
from emcid_jax.main import run

run()
"""
KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)


def written(config: Any, path: Path) -> Path:
    """A config file of these settings: a task's dataclass, or what `asdict` makes of one."""
    values = json.dumps(config if isinstance(config, dict) else dataclasses.asdict(config))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({values!r}))\n"
    )
    return path


def metrics(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())


def require_same_arrays(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def require_same_results(found: Path, wanted: Path) -> None:
    """The same weights, images and figures, to the bit."""
    content, ledger = read_edit(found / "edit.safetensors")
    wanted_content, wanted_ledger = read_edit(wanted / "edit.safetensors")
    assert ledger == wanted_ledger
    require_same_arrays(content.arrays, wanted_content.arrays)
    for part in ("text_encoder", "images"):
        files = sorted(path.relative_to(wanted) for path in (wanted / part).rglob("*.*"))
        assert files == sorted(path.relative_to(found) for path in (found / part).rglob("*.*"))
        for file in files:
            assert (found / file).read_bytes() == (wanted / file).read_bytes(), file
    for name in ("aice", "scores", "images", "stage_two"):
        assert metrics(found)[name] == metrics(wanted)[name]
