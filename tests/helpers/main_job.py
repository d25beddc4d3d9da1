"""Requests and captions of a small main job, its config file, and the figures that it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from emcid_jax.config import EditConfig

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


def written(config: EditConfig, path: Path) -> Path:
    """A config file of these settings."""
    values = json.dumps(dataclasses.asdict(config))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads({values!r}))\n"
    )
    return path


def metrics(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "metrics.json").read_text())
