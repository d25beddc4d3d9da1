"""Sweeps by two processes of four devices: the figures of one, and what a kill costs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax import config as settings
from emcid_jax.tasks.ablate import AblateConfig
from emcid_jax.tasks.trace import TraceConfig
from tests.helpers.processes import run_alone_and_together, run_processes

QUIET = settings.RunConfig(progress=False)
# Runs the command, notes every cell that a process measures, and kills process 1 at its second.
# Process 0 is ended by JAX, which by default waits for 100 s.
KILLED = """
import functools, os, signal
from pathlib import Path
import jax
from emcid_jax.tasks import ablate

jax.distributed.initialize = functools.partial(
    jax.distributed.initialize, heartbeat_timeout_seconds=10
)
measure, process = ablate._measure, os.environ["JAX_PROCESS_ID"]
notes = Path({notes!r}) / process


def noted(job, run):
    count = len(notes.read_text().splitlines()) if notes.exists() else 0
    if {killed} and process == "1" and count == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with notes.open("a") as file:
        file.write(f"{{len(job.requests)}} {{job.config.stage_two.layers}}\\n")
    return measure(job, run)


ablate._measure = noted
from emcid_jax.main import run

run()
"""


def numbers(row: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The figures of a row by their names."""
    if isinstance(row, dict):
        row = row.items()
    elif isinstance(row, list):
        row = enumerate(row)
    elif isinstance(row, int | float):
        yield name, row
        return
    else:
        return
    for key, value in row:
        yield from numbers(value, f"{name}.{key}")


def assert_close(found: list[Any], wanted: list[Any], tolerance: float) -> None:
    for row, other in zip(found, wanted, strict=True):
        one, two = dict(numbers(row)), dict(numbers(other))
        assert one.keys() == two.keys()
        assert len(one) > 10
        np.testing.assert_allclose(list(one.values()), list(two.values()), atol=tolerance)


def test_two_processes_trace_what_one_does(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    config = TraceConfig(
        names=("dog", "snow", "cat", "city"),
        sites=("block",),
        windows=(1, 2),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        run=QUIET,
    )
    alone, together = run_alone_and_together(config, tmp_path)
    tables = [json.loads((path / "trace.json").read_text()) for path in (alone, together)]
    assert tables[0] == tables[1]  # To the bit, for hosts of as many devices as the one.
    assert len(tables[0]["rows"]) == 4 + 3
    assert (alone / "trace.md").read_bytes() == (together / "trace.md").read_bytes()
    assert (together / "trace.png").exists()
    assert list(tmp_path.glob("emcid_jax-*")) == []  # The second process's folder is gone.


@pytest.mark.slow
def test_two_processes_ablate_what_one_does_though_one_is_killed(
    tiny_pipeline_folder: Path, write_tiny_judge: Callable[..., None], tmp_path: Path
) -> None:
    names = ["dog", "cat", "snow", "beach", "tench", "goldfish", "shark"]
    write_tiny_judge(tmp_path / "judge", names)
    requests = [
        {"source": source, "dest": dest, "templates": ["a photo of {}"]}
        for source, dest in zip(names[:6:2], names[1::2], strict=True)
    ]
    words = [*names, "a", "photo", "of", "the", "red", "blue", "city", "1"]
    captions = [" ".join(row) for row in np.random.default_rng(0).choice(words, (600, 10))]
    (tmp_path / "requests.json").write_text(json.dumps({"requests": requests}))
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    base = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "requests.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(
            steps=2, prompts_per_request=1, holdout=2, judge=str(tmp_path / "judge")
        ),
        run=QUIET,
    )
    variants = ("", "stage_two.layers=(2,)", "stage_one.layer=1 stage_two.layers=(1,)")
    config = AblateConfig(base, counts=(2, 3), variants=variants)
    alone, together, notes = (tmp_path / name for name in ("alone", "together", "notes"))
    notes.mkdir()
    (said,) = run_processes(1, config, alone, tmp_path)
    assert said.startswith("0 "), said

    def measured() -> list[str]:
        return sorted(line for path in notes.iterdir() for line in path.read_text().splitlines())

    program = KILLED.format(notes=str(notes), killed=True)
    first, second = run_processes(2, config, together, tmp_path, "-c", program)
    assert second.startswith(f"{-signal.SIGKILL} "), second
    assert not first.startswith("0 "), first
    table = json.loads((together / "ablation.json").read_text())
    done = [f"{row['count']} {row['variant']}" for row in table["rows"] + table["earlier"]]
    assert len(done) == len(set(done)) >= 2  # Of both processes.
    before = len(measured())
    memories = {path: path.stat().st_mtime_ns for path in (together / "bank").iterdir()}
    program = KILLED.format(notes=str(notes), killed=False)
    for said in run_processes(2, config, together, tmp_path, "-c", program):
        assert said.startswith("0 "), said
    assert len(measured()) - before == 6 - len(done)
    assert {path: path.stat().st_mtime_ns for path in (together / "bank").iterdir()} == memories
    rows, wanted = (
        json.loads((path / "ablation.json").read_text())["rows"] for path in (together, alone)
    )
    assert [row["hash"] for row in rows] == [row["hash"] for row in wanted]
    # Sums of several processes are added in another order, and pictures are rounded to bytes.
    assert_close(rows, wanted, 1e-2)
