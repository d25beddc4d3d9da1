"""The trace of a run: which chunks are in it, what of the program it names, when there is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import RunConfig, StageOneConfig
from emcid_jax.editing.bank import memories as bank
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.parallel import make_mesh
from emcid_jax.workflow.find_memories import find_memories, read_prompts
from emcid_jax.workflow.profile import FOLDER, profiled
from emcid_jax.workflow.workdir import Log, Run

CONFIG = StageOneConfig(layer=1, steps=7, objective="text-only")
NAMES = ("dog", "cat", "snow", "tench")


def find(model: Path, workdir: Path, count: int, profile: int) -> None:
    """Stage I of `count` requests, each a chunk."""
    pipeline = load_pipeline(model)
    requests = [EditRequest(name, "a beach", ("{}",), seed=3) for name in NAMES[:count]]
    config = RunConfig(progress=False, save_every=1, profile=profile)
    run = Run(config, workdir, Log(workdir / "log.jsonl"), make_mesh(jax.devices()[:1]))
    prompts = read_prompts(pipeline, requests, CONFIG)
    hashes = bank.model_hashes(pipeline)
    find_memories(pipeline, requests, prompts, CONFIG, hashes, workdir / "bank", run)


def events(folder: Path) -> list[jax.profiler.ProfileEvent]:
    """Everything that the trace in `folder` tells of the host and its devices."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    return [event for plane in planes for line in plane.lines for event in line.events]


def steps_in(found: list[jax.profiler.ProfileEvent]) -> list[int]:
    """Numbers of the traced chunks."""
    return [dict(event.stats)["step_num"] for event in found if event.name == "chunk"]


def test_the_trace_of_stage_one_names_the_operations_of_its_loop(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    find(tiny_pipeline_folder, tmp_path, 4, 2)
    found = events(tmp_path / FOLDER)
    assert steps_in(found) == [2, 3]
    stats = [dict(event.stats) for event in found]
    operations = Counter(one["hlo_op"] for one in stats if one.get("hlo_module") == "jit_run")
    # Of both chunks: what runs once in each, and what runs once per Adam step.
    assert {2, 2 * CONFIG.steps} <= set(operations.values())
    # Run again, with all memories there: the trace stays.
    (file,) = tmp_path.glob(f"{FOLDER}/plugins/profile/*/*.xplane.pb")
    before = file.stat()
    find(tiny_pipeline_folder, tmp_path, 4, 2)
    assert file.stat() == before


def test_five_steps_are_traced(tmp_path: Path) -> None:
    double = jax.jit(lambda x: x + x)
    with profiled(1, tmp_path / FOLDER) as step:
        for number in range(8):
            assert (tmp_path / FOLDER).exists() == (number > 5)
            with step(number):
                double(jnp.ones(3)).block_until_ready()
    assert steps_in(events(tmp_path / FOLDER)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("first", [0, 3])
def test_without_a_step_to_trace_nothing_is_written(
    first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with profiled(first, tmp_path / FOLDER) as step:
        for number in range(3):
            with step(number):
                pass
    assert not list(tmp_path.iterdir())
    assert ("config.run.profile is 3" in caplog.text) == (first == 3)


def test_a_run_that_fails_leaves_no_half_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), profiled(1, tmp_path / FOLDER) as step, step(1):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_job_with_fewer_chunks_is_refused(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.run\.profile is 2, but Stage I has 2 chunks"):
        find(tiny_pipeline_folder, tmp_path, 2, 2)
    assert not list(tmp_path.iterdir())
