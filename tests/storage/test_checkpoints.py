"""Checkpoints: exact round trips, and a whole one after a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checkpoints

KILLED = """
import sys
from pathlib import Path
import numpy as np
from emcid_jax.storage import checkpoints

for step in range(100_000):
    arrays = {"a": np.full((64, 64), step, np.float64), "b": {"c": np.full(5, step, np.int32)}}
    checkpoints.save(Path(sys.argv[1]), step, arrays, {"step": step})
"""


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "1": rng.standard_normal((7, 5)),
        "nested": {
            "half": rng.standard_normal(9).astype(ml_dtypes.bfloat16),
            "device": jnp.arange(6, dtype=jnp.float32) / 7,
            "count": np.asarray(2**40),
        },
    }
    about = {"name": "é", "layers": [1, 2], "inner": {"x": None, "y": 0.1}}
    checkpoints.save(tmp_path / "progress", 3, arrays, about)
    found = checkpoints.latest(tmp_path / "progress")
    assert found is not None
    assert found.step == 3
    assert found.metadata == about
    assert found.arrays["1"].dtype == np.float64
    np.testing.assert_array_equal(found.arrays["1"], arrays["1"])
    for name, array in arrays["nested"].items():
        loaded = found.arrays["nested"][name]
        assert isinstance(loaded, np.ndarray)
        assert loaded.dtype == np.asarray(array).dtype
        assert loaded.tobytes() == np.asarray(array).tobytes()


def test_only_the_newest_step_is_kept(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    for step in (1, 5, 12):
        checkpoints.save(tmp_path, step, {"a": np.full(3, step)}, {})
    assert [child.name for child in tmp_path.iterdir()] == ["12"]
    found = checkpoints.latest(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.arrays["a"], np.full(3, 12))


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"a": np.zeros(2)}, {})
    (tmp_path / "2.orbax-checkpoint-tmp-17").mkdir()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    checkpoints.save(tmp_path, 2, {"a": np.ones(2)}, {})
    assert [child.name for child in tmp_path.iterdir()] == ["2"]


def test_a_step_that_was_copied_by_half_is_passed_over(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "whole", 3, {"a": np.zeros(2)}, {"step": 3})
    checkpoints.save(tmp_path / "half", 5, {"a": np.ones(2)}, {"step": 5})
    for file in (tmp_path / "half" / "5").rglob("*"):
        if file.is_file() and "d" in file.parent.name.split("."):
            file.unlink()  # The data; what describes them came through.
    (tmp_path / "half" / "5").rename(tmp_path / "whole" / "5")
    found = checkpoints.latest(tmp_path / "whole")
    assert found is not None
    assert (found.step, found.metadata) == (3, {"step": 3})
    shutil.rmtree(tmp_path / "whole" / "3")
    assert checkpoints.latest(tmp_path / "whole") is None


def test_a_step_is_written_once(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="step 1 already stands"):
        checkpoints.save(tmp_path, 1, {"a": np.zeros(2)}, {})


def test_kill_leaves_a_whole_step(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)]) as process:
        while not any(c.name.isdecimal() and int(c.name) > 4 for c in tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step >= 4
    assert found.metadata == {"step": found.step}
    np.testing.assert_array_equal(found.arrays["a"], np.full((64, 64), found.step))
    np.testing.assert_array_equal(found.arrays["b"]["c"], np.full(5, found.step))


RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Any] = {
    "text": {"kernel": RNG.standard_normal((16, 6)).astype(np.float32), "bias": np.ones(8, "f4")},
    "unet": {"kernel": RNG.standard_normal((3, 3, 4, 8)).astype(np.float16)},
}
HASHES = {"text": "a" * 64, "unet": "b" * 64}
# Restores, with the leading axis split where it can be, on as many devices as there are.
RESTORED = """
import hashlib, json, sys
from pathlib import Path
import jax
import numpy as np
from emcid_jax.runtime import parallel
from emcid_jax.storage import checkpoints

mesh = parallel.make_mesh()


def wanted(shape):
    split = shape[0] % mesh.size == 0
    where = parallel.sharded(mesh) if split else parallel.replicated(mesh)
    return jax.ShapeDtypeStruct(tuple(shape), np.float32, sharding=where)


abstract = json.loads(sys.argv[2], object_hook=lambda x: {k: wanted(v) if isinstance(v, list)
                                                          else v for k, v in x.items()})
found = checkpoints.load_weights(Path(sys.argv[1]), abstract)
leaves = jax.tree.leaves(found)
print(json.dumps({
    "devices": [len(leaf.sharding.device_set) for leaf in leaves],
    "shards": [leaf.addressable_shards[0].data.shape for leaf in leaves],
    "hashes": [hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for leaf in leaves],
}))
"""


def abstract_weights(**shapes: tuple[int, ...]) -> Any:
    """Float32, whatever was stored; with other shapes where they are given."""
    text, unet = WEIGHTS["text"], WEIGHTS["unet"]
    found = {"kernel": text["kernel"].shape, "bias": text["bias"].shape}
    tree = {"text": found | shapes, "unet": {"kernel": unet["kernel"].shape}}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that eight devices wrote, those of `text` in shares."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    mesh = parallel.make_mesh()
    assert mesh.size == 8
    params = {
        "text": parallel.place(WEIGHTS["text"], parallel.sharded(mesh)),
        "unet": parallel.place(WEIGHTS["unet"], parallel.replicated(mesh)),
    }
    checkpoints.save_weights(folder, params, HASHES)
    return folder


@pytest.mark.parametrize("devices", [1, 2])
def test_weights_of_eight_devices_are_restored_on_fewer(saved: Path, devices: int) -> None:
    shapes = jax.tree.map(lambda leaf: list(leaf.shape), WEIGHTS)
    done = subprocess.run(
        [sys.executable, "-c", RESTORED, str(saved), json.dumps(shapes)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = [leaf.astype(np.float32) for leaf in jax.tree.leaves(WEIGHTS)]
    assert found["hashes"] == [hashlib.sha256(x.tobytes()).hexdigest() for x in wanted]
    assert found["devices"] == [devices] * 3
    split = [8 // devices], [16 // devices, 6], [3, 3, 4, 8]
    assert found["shards"] == list(split)


def test_any_flipped_byte_is_refused_and_its_file_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    whole = checkpoints.load_weights(folder, abstract_weights())
    np.testing.assert_array_equal(whole["text"]["kernel"], WEIGHTS["text"]["kernel"])
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 3
    for file in files:
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            with pytest.raises(UserError, match=r"convert (it|the model) again") as error:
                checkpoints.load_weights(folder, abstract_weights())
            assert str(file) in str(error.value)
            assert "\n" not in str(error.value)
        file.write_bytes(content)
    gone = max(files, key=lambda file: file.stat().st_size)
    gone.unlink()
    with pytest.raises(UserError, match=f"{gone.name}: is missing"):
        checkpoints.load_weights(folder, abstract_weights())


def test_weights_of_another_model_are_refused_and_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.kernel has shape \(16, 6\), expected \(16, 5\)"):
        checkpoints.load_weights(saved, abstract_weights(kernel=(16, 5)))
    with pytest.raises(UserError, match=r"text\.scale is missing"):
        checkpoints.load_weights(saved, abstract_weights(scale=(3,)))
    # The same shapes, other numbers: the weights of one model under the name of another.
    other = tmp_path / "model"
    doubled = jax.tree.map(lambda leaf: 2 * jnp.asarray(leaf), WEIGHTS)
    checkpoints.save_weights(other, doubled, {"text": "c" * 64, "unet": "d" * 64})
    shutil.copyfile(saved / checkpoints.RECORD, other / checkpoints.RECORD)
    with pytest.raises(UserError, match=f"of another model than text {'a' * 12}, unet {'b' * 12}"):
        checkpoints.load_weights(other, abstract_weights())
