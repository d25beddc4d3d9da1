"""Text that a user can name is read by `storage/text_files.py`; nothing else reads on its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "emcid_jax"

ALLOWED = {
    # The parsers of text that the door has read.
    "storage/json_text.py": {"json.loads"},
    "concepts/readers/located.py": {"json.loads", "csv.reader"},
    # Checksums, locks, logs and records that this program wrote itself.
    "storage/checksums.py": {"json.loads"},
    "storage/checkpoints.py": {"json.loads"},
    "storage/mirror/manifest.py": {"json.loads"},
    "storage/ownership.py": {"json.loads", "file.open"},
    "editing/bank/concepts.py": {"json.loads"},
    "editing/bank/memories.py": {"json.loads"},
    "editing/bank/pack_file.py": {"json.loads"},
    "editing/units/statistics.py": {"json.loads"},
    "evaluation/drawing/kept_pictures.py": {"read_text"},
    "pipelines/single_file.py": {"json.loads", "read_text"},
    "tasks/convert.py": {"json.loads", "read_text"},
    "workflow/workdir.py": {"json.loads", "read_text"},
    # The content of a config.json that the door has read before.
    "editing/export/text_encoder.py": {"json.loads"},
    # Headers of safetensors, which the library has read before.
    "editing/export/into_folder.py": {"json.loads"},
    "editing/export/stored_weights.py": {"json.loads"},
    "models/weights/safetensors_files.py": {"json.loads"},
    # What another process of this run has sent.
    "workflow/sweep.py": {"json.loads"},
    # What the system and the package hold.
    "config/bundled.py": {"read_text"},
    "runtime/peak_memory.py": {"read_text"},
    "sprites/captions.py": {"json.loads", "read_text"},
    "sprites/catalogue.py": {"json.loads", "read_text"},
    "sprites/measure.py": {"json.loads", "read_text"},
    "sprites/tokenizer.py": {"json.loads"},
}
"""Modules that read text or parse it otherwise, with what they call, and why they may."""


PARSERS = ("json.load", "json.loads", "csv.reader", "csv.DictReader", "yaml.load", "yaml.safe_load")


def readers_of(module: Path) -> Iterator[str]:
    """What a module calls that opens or parses text."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        # Of `open(path, mode)` and of `path.open(mode)`; others give handles or pictures.
        place = {"open": 1}.get(name, 0)
        mode = ast.unparse(node.args[place]) if len(node.args) > place else "'r'"
        if name.endswith(".read_text"):
            yield "read_text"
        elif name in PARSERS or (f".{name}".endswith(".open") and mode in ("'r'", "'rt'")):
            yield name


def test_no_module_reads_text_on_its_own() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): set(readers_of(path)) for path in modules}
    others = {name: calls - ALLOWED.get(name, set()) for name, calls in found.items()}
    assert {name: calls for name, calls in others.items() if calls} == {}
    # What a module no longer calls leaves the list.
    assert {name for name, calls in ALLOWED.items() if not calls <= found[name]} == set()
