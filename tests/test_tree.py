"""`tests/` mirrors the package, and finds what it shares without touching `sys.path`."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
ACROSS = {
    "concepts/readers/test_hostile_files.py": "damaged files, in every reader",
    "diffusion/test_parity.py": "every sampler on every scheduler file",
    "editing/test_files_made_by_hand.py": "altered files of every kind",
    "editing/test_files_of_version_0_1.py": "old files of every kind",
    "launch/test_compute.py": "a shell script",
    "launch/test_containers.py": "a Dockerfile, YAML files and a shell script",
    "launch/test_scripts.py": "shell scripts",
    "models/scoring/test_full_size.py": "networks at full size",
    "models/test_full_size.py": "networks at full size",
    "models/test_full_size_xl.py": "networks at full size",
    "pipelines/test_any_config.py": "any JSON value in every config of a model",
    "studies/test_questions.py": "what the studies compute by hand",
    "tasks/test_resuming.py": "tasks that fill a table",
    "tasks/test_settings_are_read.py": "every task",
    "tasks/test_tasks_xl.py": "tasks that compare and measure, with two text encoders",
    "workflow/test_units_refused.py": "tasks that predict nothing of concept units",
}
"""Tests of what several modules have in common; those in `tests/` itself are of the package."""


def modules_of(folder: Path) -> list[str]:
    """Names of the modules that the tests in `folder` are of."""
    inside = folder.relative_to(TESTS)
    beside = ("benchmarks", "studies", "website")
    root = TESTS.parent / ("" if inside.parts[0] in beside else "emcid_jax")
    return [path.stem for path in (root / inside).glob("*") if not path.name.startswith("_")]


def test_every_test_file_is_of_a_module_or_of_a_rule() -> None:
    files = [path for path in TESTS.rglob("test_*.py") if path.parent != TESTS]
    strays = {
        path.relative_to(TESTS).as_posix()
        for path in files
        if not any(
            path.stem == f"test_{name}" or path.stem.startswith(f"test_{name}_")
            for name in modules_of(path.parent)
        )
    }
    assert strays == ACROSS.keys()


def test_no_test_changes_where_modules_are_looked_for() -> None:
    hack = "sys.path" + ".insert"
    assert [path.name for path in TESTS.rglob("*.py") if hack in path.read_text("utf8")] == []
