"""Headers and tensors against the safetensors library; what a damaged file says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emcid_jax.errors import UserError
from emcid_jax.models.tensor_file import FLOATS, read_header, read_tensor


def test_tensors_are_those_of_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (), (7,), (2, 3, 1, 2)]
    types = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
    stored = {
        f"{i}.{np.dtype(kind).name}": np.asarray(rng.standard_normal(shape)).astype(kind)
        for i, shape in enumerate(shapes)
        for kind in types
    }
    stored |= {"ids": np.arange(4), "flags": np.ones(3, bool)}
    file = tmp_path / "a.safetensors"
    save_file(stored, file, metadata={"format": "pt"})
    header, expected = read_header(file), load_file(file)
    assert header.shapes == {name: array.shape for name, array in expected.items()}
    assert (header.kinds["ids"], header.kinds["flags"]) == ("I64", "BOOL")
    for name in stored:
        if header.kinds[name] in FLOATS:
            found = read_tensor(file, header, name)
            assert found.dtype == expected[name].dtype
            np.testing.assert_array_equal(found, expected[name])


def written(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": (b"", "not a safetensors file; download it again"),
    "pickle": (b"\x80\x02}q\x00(X\x0a\x00\x00\x00" * 3, "not a safetensors file"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
        "a Git LFS pointer, not the weights; run `git lfs pull`",
    ),
    "list": (written([1]), "its header is damaged"),
    "text": (written({"a.weight": "x"}), "its header is damaged"),
    "no type": (written({"a.weight": {"shape": [2]}}), "its header is damaged"),
    "strange type": (
        written({"a.weight": ENTRY | {"dtype": "FLOAT"}}, bytes(8)),
        "its header is damaged",
    ),
    "wrong bytes": (
        written({"a.weight": ENTRY | {"shape": [3]}}, bytes(8)),
        r"its header is damaged \(a\.weight has not the bytes of its shape\)",
    ),
    "cut": (
        written({"a.weight": ENTRY, "b.bias": ENTRY | {"data_offsets": [8, 16]}}, bytes(12)),
        r"cut off after \d+ bytes, within b\.bias \(1 tensors",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_one_line(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_header(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_shrinks_meanwhile_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(written({"a.weight": ENTRY}, bytes(8)))
    header = read_header(file)
    file.write_bytes(written({"a.weight": ENTRY}, bytes(5)))
    with pytest.raises(UserError, match=r"cut off within a\.weight"):
        read_tensor(file, header, "a.weight")
    file.unlink()
    with pytest.raises(UserError, match=r"a\.weight is not readable"):
        read_tensor(file, header, "a.weight")


MEASURED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from emcid_jax.models.weights import read_params


def peak():
    # Not getrusage: it starts from the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


jnp.zeros(1).block_until_ready()
count, side = int(sys.argv[2]), int(sys.argv[3])
leaf = jax.ShapeDtypeStruct((side, side), jnp.float32)
abstract = {f"{i}": {"kernel": leaf} for i in range(count)}
before = peak()
params = read_params(Path(sys.argv[1]), abstract)
jax.block_until_ready(params)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_loading_holds_the_model_and_little_more(kind: type, tmp_path: Path) -> None:
    count, side = 64, 2048  # 1 GiB as float32, in tensors of 16 MiB
    file = tmp_path / "model.safetensors"
    save_file({f"{i}.weight": np.zeros((side, side), kind) for i in range(count)}, file)
    command = [sys.executable, "-c", MEASURED, str(file), str(count), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout) / 2**10
    print(f"{np.dtype(kind).name}: {grown:.0f} MiB for {count * side**2 * 4 / 2**20:.0f} MiB")
    assert 1000 < grown < 1.5 * 1024  # with the file mapped, or two copies, it is twice the model
