"""Checkpoints: exact round trips, and a whole one after a kill at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emcid_jax import checkpoints

KILLED = """
import sys
from pathlib import Path
import numpy as np
from emcid_jax import checkpoints

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
