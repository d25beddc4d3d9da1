"""Headers and tensors against the safetensors library; what a damaged file says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load_file, save, save_file

from emcid_jax.models.weights.safetensors_files import FLOATS, read_header, read_tensor
from emcid_jax.runtime.errors import UserError


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
    "empty": (b"", "not a safetensors file"),
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
        "its header is damaged",
    ),
    "behind": (
        written({"a.weight": ENTRY}, bytes(9)),
        r"1 bytes lie behind its last tensor.*`truncate -s \d+`",
    ),
    "cut": (
        written({"a.weight": ENTRY, "b.bias": ENTRY | {"data_offsets": [8, 16]}}, bytes(12)),
        r"cut off after \d+ of \d+ bytes, within b\.bias; download",
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


def mutated(data: st.DataObject) -> bytes:
    """A file of three tensors with one thing or a few changed."""
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.int64), "c": np.zeros(0)}
    content = save({name: array.reshape(-1, 1) for name, array in arrays.items()}, {"k": "v"})
    start = 8 + int.from_bytes(content[:8], "little")
    entries, tail = json.loads(content[8:start]), content[start:]
    number = st.one_of(
        st.integers(-9, 48), st.sampled_from([2**31, 2**63, 2**64, -(2**63), 1.0, None, "8", True])
    )
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(["a", "b", "c", "d", "__metadata__"]))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        value = data.draw(
            st.one_of(
                st.lists(number, max_size=3),
                st.sampled_from(["F32", "I64", "F64", "F4", "F8_E4M3", "BF16", "X", None, {}]),
            )
        )
        if data.draw(st.booleans()) and isinstance(entries.get(name), dict):
            entries[name] = {key: v for key, v in entries[name].items() if key != field}
        elif isinstance(entries.get(name), dict) and name != "__metadata__":
            entries[name] = entries[name] | {field: value}
        else:
            entries[name] = data.draw(st.sampled_from([value, dict(entries["a"]), {"k": "w"}]))
    text = json.dumps(entries).encode()
    change = data.draw(st.sampled_from(["no", "no", "twice", "byte", "nested", "spaces", "tail"]))
    if change == "twice":
        text = text[:-1] + b', "a": ' + json.dumps(entries["b"]).encode() + b"}"
    elif change == "byte":
        place = data.draw(st.integers(0, len(text) - 1))
        text = text[:place] + bytes([data.draw(st.integers(0, 255))]) + text[place + 1 :]
    elif change == "nested":
        text = b'{"a": ' + b"[" * data.draw(st.sampled_from([2, 200, 100_000])) + text
    elif change == "spaces":
        text += b" " * data.draw(st.integers(0, 9))
    elif change == "tail":
        tail = data.draw(st.sampled_from([tail[:-1], tail + b"\0", b"", tail + tail]))
    length = data.draw(
        st.sampled_from([*[len(text)] * 6, len(text) - 1, len(text) + 1, 0, 2**40, 2**64 - 1])
    )
    return length.to_bytes(8, "little") + text + tail


@hypothesis.settings(max_examples=400)
@given(st.data())
def test_what_the_library_refuses_is_refused_and_the_rest_reads_alike(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    content = mutated(data)
    file.write_bytes(content)
    try:
        expected = dict(deserialize(content))
    except SafetensorError:
        with pytest.raises(UserError) as error:
            read_header(file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        return
    header = read_header(file)
    assert header.shapes == {name: tuple(found["shape"]) for name, found in expected.items()}
    assert header.kinds == {name: found["dtype"] for name, found in expected.items()}
    for name, found in expected.items():
        place = header.offsets[name]
        assert content[place : place + len(found["data"])] == bytes(found["data"])
        if header.kinds[name] in FLOATS:
            assert read_tensor(file, header, name).tobytes() == bytes(found["data"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_are_no_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no such file|is a pipe"):
        read_header(tmp_path / "model.safetensors")


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
from emcid_jax.models.weights.params import read_params


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
