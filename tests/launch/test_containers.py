"""Dockerfile, the Job for GKE and the SkyPilot task: their fields, and what is run."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch_stage import ROOT, Stage

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# A type, a pattern, the values allowed, a list of one kind of thing, or the fields of an object; a
# field whose name ends with "?" may be missing, and no other may be there. After the reference
# pages of Kubernetes (Service v1, Job batch/v1) and of SkyPilot's task YAML.
SERVICE = {
    "apiVersion": {"v1"},
    "kind": {"Service"},
    "metadata": {"name": NAME},
    "spec": {"clusterIP": {"None"}, "selector": {"job-name": NAME}},
}
CODES = {"operator": {"In", "NotIn"}, "values": [int]}
CONDITION = {"type": {"DisruptionTarget"}, "status": {"True"}}
ACTION = {"FailJob", "Ignore", "Count", "FailIndex"}
JOB = {
    "apiVersion": {"batch/v1"},
    "kind": {"Job"},
    "metadata": {"name": NAME},
    "spec": {
        "completionMode": {"Indexed"},
        "completions": int,
        "parallelism": int,
        "backoffLimit": int,
        "podFailurePolicy": {
            "rules": [{"action": ACTION, "onExitCodes?": CODES, "onPodConditions?": [CONDITION]}]
        },
        "template": {
            "spec": {
                "subdomain": NAME,
                "restartPolicy": {"Never"},  # All that a podFailurePolicy may go with.
                "nodeSelector": {
                    "cloud.google.com/gke-tpu-accelerator": str,
                    "cloud.google.com/gke-tpu-topology": str,
                },
                "tolerations": [{"key": str, "operator": {"Exists"}, "effect": {"NoSchedule"}}],
                "securityContext": {"runAsUser": int},
                "containers": [
                    {
                        "name": NAME,
                        "image": str,
                        "args": [str],
                        "resources": {
                            "requests": {"google.com/tpu": int},
                            "limits": {"google.com/tpu": int},
                        },
                        "volumeMounts": [{"name": NAME, "mountPath": str}],
                    }
                ],
                "volumes": [{"name": NAME, "persistentVolumeClaim": {"claimName": NAME}}],
            }
        },
    },
}
TASK = {
    "name": NAME,
    "workdir": {"."},
    "resources": {
        "infra": re.compile(r"[a-z0-9-]+(/[a-z0-9-]+){0,2}"),
        "accelerators": re.compile(r"tpu-v[0-9a-z]+-[0-9]+"),
        "accelerator_args": {"runtime_version": str},
        "use_spot": bool,
        "job_recovery": {"recover_on_exit_codes": [int]},
    },
    "envs": {"BUCKET": type(None), "ARGUMENTS": type(None)},  # null: the user must give them.
    "setup": str,
    "run": str,
}


def faults(value: Any, kind: Any, where: str = "") -> list[str]:
    """Where `value` is not of `kind`."""
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: no list"]
        return [x for i, item in enumerate(value) for x in faults(item, kind[0], f"{where}[{i}]")]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{where}: no object"]
        known = {name.removesuffix("?"): below for name, below in kind.items()}
        missing = [name for name in kind if not name.endswith("?") and name not in value]
        below = [x for k in value if k in known for x in faults(value[k], known[k], f"{where}.{k}")]
        return [f"{where}.{name}: unknown" for name in value if name not in known] + [
            *(f"{where}.{name}: missing" for name in missing),
            *below,
        ]
    if isinstance(kind, re.Pattern):
        fits = isinstance(value, str) and bool(kind.fullmatch(value))
    else:
        fits = value in kind if isinstance(kind, set) else type(value) is kind
    return [] if fits else [f"{where}: {value!r}"]


def applied(stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """The service and the Job of the one call of kubectl."""
    (call,) = stage.asked()
    assert call[:3] == ["kubectl", "apply", "--filename=-"]
    service, job = yaml.safe_load_all(call[3])
    return service, job


def test_the_job_has_a_pod_per_host_of_the_slice(stage: Stage) -> None:
    image = "us-docker.pkg.dev/mine/emcid/emcid:1"
    odd = '--config.note=a "b" \\ & $IMAGE $(HOME) é: [x] #y'
    settings = {"NAME": "second", "ACCELERATOR": "tpu7x", "TOPOLOGY": "2x2x4", "CLAIM": "disk"}
    done = stage.run("gke.sh", "run", "--config=aice", odd, IMAGE=image, **settings)
    assert done.returncode == 0, done.stderr
    service, job = applied(stage)
    assert faults(service, SERVICE) == []
    assert faults(job, JOB) == []
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == 4
    # By these three the pods find each other.
    assert service["metadata"]["name"] == pod["subdomain"] == "second"
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"] == "second"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu7x",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    (container,) = pod["containers"]
    assert container["image"] == image
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    together = "--config.run.distributed=True"
    kept = odd.replace("$(", "$$(")  # Kubernetes takes one away.
    assert container["args"] == ["--config=aice", kept, together]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    assert pod["volumes"][0]["name"] == container["volumeMounts"][0]["name"]
    rules = {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"][:2]}
    assert rules["FailJob"]["onExitCodes"]["values"] == [2]
    assert rules["Ignore"]["onExitCodes"]["values"] == [143]


def test_the_schemas_find_faults() -> None:
    text = (ROOT / "launch" / "job.yaml").read_text()
    _, job = yaml.safe_load_all(text)
    found = faults(job, JOB)  # Not filled in, so numbers are words.
    assert ".spec.completions: '$HOSTS'" in found
    job["spec"]["completionmode"] = job["spec"].pop("completionMode")
    assert {".spec.completionmode: unknown", ".spec.completionMode: missing"} <= {*faults(job, JOB)}


def test_one_host_runs_alone(stage: Stage) -> None:
    done = stage.run("gke.sh", "run", "--config=aice", IMAGE="i", TOPOLOGY="2x4", CHIPS="8")
    assert done.returncode == 0, done.stderr
    _, job = applied(stage)
    assert job["spec"]["completions"] == 1
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["--config=aice"]


@pytest.mark.parametrize("action", [("run", "--config=a 'b'"), ("logs",), ("delete",)])
def test_a_dry_run_prints_what_a_run_does_and_asks_nothing(
    stage: Stage, action: tuple[str, ...]
) -> None:
    dry = stage.run("gke.sh", "--dry-run", *action, IMAGE="i")
    assert dry.returncode == 0, dry.stderr
    assert not (stage.folder / "notes").exists()
    assert stage.run("gke.sh", *action, IMAGE="i").returncode == 0
    asked = stage.asked()
    assert stage.asked_by(dry.stdout) == asked


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "IMAGE is not set"),
        ({"IMAGE": "i", "TOPOLOGY": "4"}, "TOPOLOGY is '4'; give chips along each axis"),
        ({"IMAGE": "i", "CHIPS": "four"}, "CHIPS is 'four'"),
        ({"IMAGE": "i", "TOPOLOGY": "1x1"}, "TOPOLOGY is 1x1, which has less than CHIPS=4 chips"),
    ],
)
def test_a_mistake_is_named_before_anything_is_asked(
    stage: Stage, settings: dict[str, str], error: str
) -> None:
    done = stage.run("gke.sh", "run", "--config=aice", **settings)
    assert done.returncode == 2
    assert error in done.stderr
    assert stage.run("gke.sh", "run", "a\nb", IMAGE="i").returncode == 2
    assert not (stage.folder / "notes").exists()


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_skypilot_task_runs_what_it_is_given(tmp_path: Path, hosts: int) -> None:
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    assert faults(task, TASK) == []
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "kept.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "launch" / "kept.sh").chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": str(hosts),
        "BUCKET": "gs://b/f",
        "ARGUMENTS": "--config=c.py --workdir=w",
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [
        "gs://b/f",
        ".venv/bin/python",
        "-m",
        "emcid_jax.main",
        "--config=c.py",
        "--workdir=w",
    ]
    assert done.stdout.split() == wanted + ["--config.run.distributed=True"] * (hosts - 1)


def test_the_image_holds_the_package_and_runs_as_nobody_special() -> None:
    lines = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    done = dict(steps)  # The last of each kind.
    assert done["FROM"].startswith("python:3.12")
    assert done["ENTRYPOINT"] == '["emcid_jax"]'
    assert done["VOLUME"] == done["WORKDIR"] == "/work"
    assert done["USER"] not in ("root", "0")
    order = [name for name, _ in steps]
    assert order.index("ARG") < order.index("COPY") < order.index("USER") < order.index("VOLUME")
    (install,) = [what for name, what in steps if name == "RUN" and "pip install" in what]
    word = re.search(r'pip install --no-cache-dir ("\S+")', install)
    assert word
    for extra, wanted in {"": ".", "tpu": ".[tpu]", "cuda,tfds": ".[cuda,tfds]"}.items():
        command = ["bash", "-c", f"EXTRA={extra}; echo {word[1]}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == wanted


def test_the_images_context_is_what_the_package_is_built_from() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    setup = (ROOT / "setup.py").read_text()
    named = re.findall(r'"(\w[\w.]*)"(?!:)', setup)  # Extras have a colon behind them.
    read = {name for name in named if (ROOT / name).exists()}
    assert read >= {"README.md", "LICENSE", "configs", "emcid_jax"}
    assert kept == read | {"setup.py", "pyproject.toml"}
    assert not any(fnmatch(name, rule) for name in kept for rule in rules[1:] if rule[0] != "!")
