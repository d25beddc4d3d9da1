"""Plain files, variants and sharded sets in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emcid_jax.models.weights.shards import weight_files
from emcid_jax.runtime.errors import UserError

PLAIN, HALF = "model.safetensors", "model.fp16.safetensors"
SHARDS = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def write_index(folder: Path, name: str, shards: list[str]) -> None:
    places = {f"{i}.weight": shard for i, shard in enumerate(shards)}
    (folder / name).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("there", "variant", "chosen"),
    [
        ([PLAIN], "", PLAIN),
        ([PLAIN, HALF], "", PLAIN),
        ([PLAIN, HALF], "fp16", HALF),
        ([HALF], "", HALF),
        ([PLAIN, "model.non_ema.fp16.safetensors", HALF], "non_ema.fp16", None),
    ],
)
def test_the_variant_decides(
    there: list[str], variant: str, chosen: str | None, tmp_path: Path
) -> None:
    fill(tmp_path, *there, "config.json", "notes.txt")
    expected = tmp_path / (chosen or "model.non_ema.fp16.safetensors")
    assert weight_files(tmp_path, variant) == [expected]


@pytest.mark.parametrize(
    "index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"]
)
def test_shards_are_those_of_the_variants_index(index: str, tmp_path: Path) -> None:
    fill(tmp_path, PLAIN, *SHARDS)
    write_index(tmp_path, index, SHARDS)
    assert weight_files(tmp_path) == [tmp_path / PLAIN]
    assert weight_files(tmp_path, "fp16") == [tmp_path / shard for shard in SHARDS]
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(UserError, match=rf"{SHARDS[1]}: no such file, but {index} .* 1\.weight"):
        weight_files(tmp_path, "fp16")


def test_what_cannot_be_chosen_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pickled weights are not read"):
        weight_files(tmp_path)
    fill(tmp_path, HALF, "model.bf16.safetensors")
    with pytest.raises(UserError, match=r"several weight files \(model.bf16.*, model.fp16.*"):
        weight_files(tmp_path)
    with pytest.raises(UserError, match=r"no \*\.int8\.safetensors file .*model.bf16"):
        weight_files(tmp_path, "int8")
