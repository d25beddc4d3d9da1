"""A tokenizer's files: what they say of special tokens must be in the vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from emcid_jax.models.text.tokenizer import load_tokenizer
from emcid_jax.runtime.errors import UserError


@pytest.mark.parametrize("field", ["bos_token", "eos_token", "pad_token"])
@pytest.mark.parametrize("value", [{"a": 1}, "", [], 7])
def test_a_special_token_that_is_none_is_refused(
    field: str, value: Any, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """transformers gives the id of another token for some of these: prompts would begin wrongly."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_pipeline_folder / "tokenizer", folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError) as refused:
        load_tokenizer(folder)
    assert str(folder) in str(refused.value)
