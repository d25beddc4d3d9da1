"""The examples of README.md and docs/python.md, run on the tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import emcid_jax
from emcid_jax.config import StageOneConfig, StageTwoConfig

ROOT = Path(__file__).parents[1]
ONE = StageOneConfig(layer=2, steps=2, objective="text-only")
TWO = StageTwoConfig(layers=(1, 2), preservation_weight=0.1)


def run(page: str, folder: Path) -> dict[str, Any]:
    """The page's one example in the current folder, on the model in `folder`: its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    code = code.replace('"sprites"', repr(str(folder)))
    # The model has four blocks only.
    code = code.replace('"my-bank")', '"my-bank", ONE)').replace(
        "captions))", "captions, TWO), TWO)"
    )
    code = code.replace('tiger cat"])', 'tiger cat"], steps=1, guidance=1.0)')
    captions = [f"a picture of {i} dogs in the {w}" for i in range(30) for w in ("snow", "art")]
    names = {"ONE": ONE, "TWO": TWO, "captions": captions}
    exec(code, names)
    return names


def test_the_documents_examples_run(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("README.md", tiny_pipeline_folder)
    written = load_file(tmp_path / "text_encoder" / "model.safetensors")
    names = run("docs/python.md", tiny_pipeline_folder)
    base, edited = names["base"], names["edited"]
    assert names["images"].shape == (2, 16, 16, 3)
    changed = [
        jax.tree_util.keystr(path)
        for (path, before), after in zip(
            jax.tree_util.tree_leaves_with_path(base.params),
            jax.tree.leaves(edited.params),
            strict=True,
        )
        if not np.array_equal(before, after)
    ]
    assert len(changed) == 2
    assert all("fc2" in name and "kernel" in name for name in changed)
    fresh = emcid_jax.load_pipeline(str(tiny_pipeline_folder))
    jax.tree.map(np.testing.assert_array_equal, base.params, fresh.params)
    stored = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert stored.keys() == written.keys()
    for key, array in stored.items():
        np.testing.assert_array_equal(written[key], array)
    blocks = edited.params["text_encoder"]["text_model"]["encoder"]
    name = "text_model.encoder.layers.1.mlp.fc2.weight"
    np.testing.assert_array_equal(
        stored[name], np.asarray(blocks["layers.1"]["mlp"]["fc2"]["kernel"]).T
    )


def test_names_are_loaded_when_they_are_used() -> None:
    code = """
import sys
import emcid_jax

assert set(emcid_jax.__all__) < set(dir(emcid_jax))
for name, said in (
    ("edit_everything", "has no attribute 'edit_everything'"),
    ("memorize", "emcid_jax.memorize is now called emcid_jax.run_stage_one"),
    ("measure", "emcid_jax.measure is now called emcid_jax.second_moments"),
):
    try:
        getattr(emcid_jax, name)
    except AttributeError as error:
        assert said in str(error), error
    else:
        raise AssertionError(name)
assert not {"jax", "numpy", "emcid_jax.api"} & set(sys.modules)
for name in emcid_jax.__all__:
    assert getattr(emcid_jax, name).__name__ == name
assert not [name for name in sys.modules if name.startswith(("emcid_jax.tasks", "emcid_jax.main"))]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
