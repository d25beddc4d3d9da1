"""One program on several devices and several processes: who has what, and the same results."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from emcid_jax import config as settings
from emcid_jax.config import EditConfig
from emcid_jax.editing.bank import memories as bank
from emcid_jax.editing.export.edit_file import read_edit
from emcid_jax.editing.moments import second_moment
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from tests.helpers.processes import run_processes

EPSILON = float(np.finfo(np.float32).eps)
REQUESTS = [
    {"source": "dog", "dest": "cat", "templates": ["a photo of {}"], "seed": 1},
    {"source": "snow", "dest": "beach", "templates": ["a photo of {}"]},
    {"source": "tench", "dest": "goldfish", "templates": ["a photo of {}"], "seed": 5},
]
# Many and unlike, so that C is well conditioned: else the edit amplifies the rounding of the sums.
WORDS = (
    "a", "photo", "of", "the", "dog", "cat", "snow", "beach", "city", "red", "blue", "picture",
    "number", "tench", "goldfish", "shark", "nurse", "i", "1", "7",
)  # fmt: skip
CAPTIONS = [" ".join(row) for row in np.random.default_rng(0).choice(WORDS, (600, 10))]
# Runs the command; one of the processes gets a real SIGTERM when it first files a memory, or saves
# how far the second moments are.
TOLD = """
import os, signal, sys
from emcid_jax.storage import checkpoints
from emcid_jax.editing.bank import memories as bank

module, name, process = {where}
original = getattr(module, name)


def told(*arguments):
    if os.environ["JAX_PROCESS_ID"] == process:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments)


setattr(module, name, told)
from emcid_jax.main import run

run()
"""
FILING = TOLD.format(where='bank, "write", "1"')
SAVING = TOLD.format(where='checkpoints, "save", "0"')


def test_place_and_fetch_are_inverse_and_split_as_asked() -> None:
    mesh = parallel.make_mesh()
    tree = {"a": np.arange(48.0).reshape(16, 3), "b": np.arange(8)}
    placed = parallel.place(tree, parallel.sharded(mesh))
    assert {shard.data.shape for shard in placed["a"].addressable_shards} == {(2, 3)}
    everywhere = parallel.place(tree, parallel.replicated(mesh))
    assert {shard.data.shape for shard in everywhere["a"].addressable_shards} == {(16, 3)}
    for found in (parallel.fetch(placed), parallel.fetch(everywhere)):
        np.testing.assert_array_equal(found["a"], tree["a"])
        np.testing.assert_array_equal(found["b"], tree["b"])


def test_weights_are_cut_along_the_longest_axis_that_can_be() -> None:
    mesh = parallel.make_mesh(weight_shards=4)
    tree = {
        "last": np.zeros((3, 3, 8, 16)),
        "square": np.zeros((8, 8)),
        "first": np.zeros((12, 9)),
        "odd": np.zeros((7, 9)),
        "one": np.zeros(()),
    }
    placed = parallel.place(tree, parallel.spread(tree, mesh))
    held = {name: array.addressable_shards[0].data.shape for name, array in placed.items()}
    assert held == {
        "last": (3, 3, 8, 4),
        "square": (8, 2),
        "first": (3, 9),
        "odd": (7, 9),
        "one": (),
    }
    whole = sum(array.nbytes for array in tree.values())
    assert parallel.spared(tree, mesh) == whole - 8 * (288 + 16 + 27 + 63 + 1)
    assert parallel.spared(tree, parallel.make_mesh()) == 0
    for name, array in parallel.fetch(placed).items():
        np.testing.assert_array_equal(array, tree[name])


def test_weights_are_shared_by_devices_of_one_host_only() -> None:
    with pytest.raises(UserError, match=r"weight_shards is 3, but there are 8 devices on a host"):
        parallel.make_mesh(weight_shards=3)


def test_alone_everything_is_ones_own() -> None:
    assert parallel.is_first()
    assert parallel.share(b"x") == b"x"
    assert parallel.least(2**40) == parallel.total(2**40) == 2**40
    assert parallel.me() == (0, 1, None)
    assert [parallel.any_process(value) for value in (False, True)] == [False, True]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, "JAX_NUM_PROCESSES is not set"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "host:1",
                "JAX_NUM_PROCESSES": "two",
                "JAX_PROCESS_ID": "0",
            },
            "JAX_NUM_PROCESSES is 'two'; it must be a whole number",
        ),
        ({}, "config.run.distributed is True, but there are no processes to join"),
    ],
)
def test_a_start_that_nobody_explains_is_one_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as error:
        parallel.start()
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def config(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EditConfig:
    files = tmp_path_factory.mktemp("files")
    (files / "requests.json").write_text(json.dumps({"requests": REQUESTS}))
    (files / "captions.txt").write_text("\n".join(CAPTIONS))
    return EditConfig(
        requests=settings.RequestsConfig(path=str(files / "requests.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, image_steps=1),
        moments=settings.MomentConfig(captions=str(files / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(enabled=False),
        run=settings.RunConfig(save_every=2, save_every_batches=2, progress=False),
    )


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over norm of what is wanted."""
    scale = np.linalg.norm(np.float64(wanted))
    return float(np.linalg.norm(np.float64(found) - wanted) / scale) if scale else 0.0


@pytest.mark.parametrize(
    "objective", ["text-only", pytest.param("ablate-dest", marks=pytest.mark.slow)]
)
def test_two_processes_of_four_devices_do_what_one_of_eight_does(
    objective: settings.Objective, config: EditConfig, tmp_path: Path
) -> None:
    """Stage I, moments, Stage II; interrupted by a SIGTERM to one of them, and gone on with.

    With images (slow) the drawing, the autoencoder and the UNet are split as well.
    """
    stage_one = dataclasses.replace(config.stage_one, objective=objective)
    config = dataclasses.replace(config, stage_one=stage_one)
    alone, together, files = (tmp_path / name for name in ("alone", "together", "files"))
    files.mkdir()
    (said,) = run_processes(1, config, alone, files)
    assert said.startswith("0 "), said

    for program, memories in ((FILING, 2), (SAVING, 3)):
        for said in run_processes(2, config, together, files, "-c", program):
            code, _, text = said.partition(" ")
            assert int(code) == 128 + signal.SIGTERM, said
            assert "stopped by SIGTERM; the same command goes on from here" in text
        assert len(list((together / "bank").glob("*.safetensors"))) == memories
    for said in run_processes(2, config, together, files):
        assert said.startswith("0 "), said

    names = {path.name for path in (alone / "bank").glob("*.safetensors")}
    assert names == {path.name for path in (together / "bank").glob("*.safetensors")}
    assert len(names) == len(REQUESTS)
    for name in names:
        for folder in (alone, together):
            assert bank.read_record(folder / "bank", Path(name).stem).details["devices"] == 8
        # A concept is one device's work, whichever process has that device.
        found, wanted = load_file(together / "bank" / name), load_file(alone / "bank" / name)
        assert found.keys() == wanted.keys()
        for part, array in wanted.items():
            assert distance(found[part], array) <= 1e-6, (name, part)
    found, wanted = (
        second_moment.read_moments(folder / "moments" / "second_moments.safetensors").moments
        for folder in (together, alone)
    )
    deltas, wanted_deltas = (
        read_edit(folder / "edit.safetensors")[0].deltas() for folder in (together, alone)
    )
    assert deltas.keys() == wanted_deltas.keys() == {1, 2}
    weights = load_file(together / "text_encoder" / "model.safetensors")
    wanted_weights = load_file(alone / "text_encoder" / "model.safetensors")
    for layer, delta in wanted_deltas.items():
        # Several processes add the devices' float32 sums in another order. Stage II solves with the
        # moments, whose condition number (10^4 here) says by how much more the edit may move.
        assert distance(found[layer], wanted[layer]) <= 8 * EPSILON
        assert np.abs(delta).max() > 0
        assert distance(deltas[layer], delta) <= 1e-5
    assert weights.keys() == wanted_weights.keys()
    for name, array in wanted_weights.items():
        assert distance(weights[name], array) <= 1e-5, name
    lines = [json.loads(x) for x in (together / "metrics.jsonl").read_text().splitlines()]
    assert [x["concepts"] for x in lines if x["phase"] == "stage_one"] == [2, 3]
    batches = [x["batches"] for x in lines if x["phase"] == "moments"]
    assert batches == sorted(set(batches))  # None was done twice.
    assert len(batches) > 2
    assert list(files.glob("emcid_jax-*")) == []  # The second process's copies are gone.


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ({}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 2),
        ({"JAX_NUM_CPU_DEVICES": "2"}, 2),
    ],
)
def test_the_cpu_is_so_many_devices(said: dict[str, str], devices: int) -> None:
    script = """
import jax
from emcid_jax.runtime import parallel
parallel.use_cpu_devices(3)
print(jax.device_count())
parallel.use_cpu_devices(5)
print(jax.device_count())
"""
    unsaid = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=unsaid | {"JAX_PLATFORMS": "cpu"} | said,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(devices)] * 2
