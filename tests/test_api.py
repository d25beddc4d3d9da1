"""The example of docs/python.md, run on the tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import emcid_jax
from emcid_jax.config import StageOneConfig, StageTwoConfig

ROOT = Path(__file__).parents[1]
ONE = StageOneConfig(layer=2, steps=2, objective="text-only")
TWO = StageTwoConfig(layers=(1, 2), moment_weight=0.1)


def test_the_documents_example_runs(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    code = code.replace('"sprites"', repr(str(tiny_pipeline_folder)))
    # The model has four blocks only.
    code = code.replace('"my-bank")', '"my-bank", ONE)').replace(
        "captions))", "captions, TWO), TWO)"
    )
    code = code.replace('tiger cat"])', 'tiger cat"], steps=1, guidance=1.0)')
    monkeypatch.chdir(tmp_path)
    captions = [f"a picture of {i} dogs in the {w}" for i in range(30) for w in ("snow", "art")]
    names = {"ONE": ONE, "TWO": TWO, "captions": captions}
    exec(code, names)

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
    blocks = edited.params["text_encoder"]["text_model"]["encoder"]
    name = "text_model.encoder.layers.1.mlp.fc2.weight"
    np.testing.assert_array_equal(
        stored[name], np.asarray(blocks["layers.1"]["mlp"]["fc2"]["kernel"]).T
    )


def test_unknown_names_are_said_to_be_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'edit_everything'"):
        emcid_jax.edit_everything  # noqa: B018
