"""launch/compute.sh: what is asked of gcloud for one TPU VM and for several of one slice."""

from __future__ import annotations

from typing import Any

import pytest

from launch_stage import Stage, verbs

SLICE = {
    "MACHINE": "tpu7x-standard-4t",
    "TOPOLOGY": "2x2x2",
    "ZONE": "us-central1-c",
    "PROJECT": "mine",
    "VMS": "emcid-2\nemcid-1",
}


def test_one_vm_from_create_to_delete(stage: Stage) -> None:
    for action in (
        ("create",),
        ("install",),
        ("push", "requests.csv", "model"),
        ("run", "--config=c.py"),
        ("fetch", "runs/mine"),
        ("delete",),
    ):
        done = stage.run("compute.sh", *action, states="PENDING RUNNING")
        assert done.returncode == 0, done.stderr
    template, group, up, bundle, install, push, run, fetch, *deleted = stage.asked()
    assert template[:4] == ["gcloud", "compute", "instance-templates", "create"]
    assert {
        "--machine-type=ct6e-standard-8t",
        "--provisioning-model=STANDARD",
        "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
        "--maintenance-policy=TERMINATE",
        "--scopes=cloud-platform",
    } <= set(template)
    assert {"--template=emcid", "--size=1", "--target-size-policy-mode=bulk"} <= set(group)
    assert not any("workload-policy" in word for call in (template, group) for word in call)
    assert up[-1] == "--command=true"
    assert bundle[-1] == "emcid-1:."
    assert "emcid_jax[tpu,tfds]" in install[-1]
    assert push[-3:] == ["requests.csv", "model", "emcid-1:emcid_jax/"]
    wanted = "--command=cd emcid_jax && ../venv/bin/python -m emcid_jax.main --config=c.py "
    assert run[2:] == ["ssh", "emcid-1", "--zone=us-east5-a", wanted]
    assert fetch[-2:] == ["emcid-1:emcid_jax/runs/mine", "runs"]
    assert [call[2] for call in deleted] == ["instance-groups", "instance-templates"]


def test_the_vms_of_a_slice_are_made_together_and_know_their_places(stage: Stage) -> None:
    for action in (("create",), ("run", "--config=c.py", "--config.run.distributed=True")):
        # One of the two runs before the other.
        done = stage.run("compute.sh", *action, states="RUNNING+STAGING RUNNING+RUNNING", **SLICE)
        assert done.returncode == 0, done.stderr
    policy, template, group, *commands = stage.asked()
    assert policy[2:5] == ["resource-policies", "create", "workload-policy"]
    assert {"--accelerator-topology=2x2x2", "--region=us-central1"} <= set(policy)
    assert "--image-family=ubuntu-accel-2404-amd64-tpu-tpu7x" in template
    assert "--boot-disk-type=hyperdisk-balanced" in template
    path = "projects/mine/regions/us-central1/resourcePolicies/emcid"
    assert {"--size=2", f"--workload-policy={path}"} <= set(group)
    runs = {call[3]: call[-1] for call in commands if "emcid_jax.main" in call[-1]}
    assert runs.keys() == {"emcid-1", "emcid-2"}
    for process, name in enumerate(sorted(runs)):
        assert "JAX_COORDINATOR_ADDRESS=emcid-1:8476 JAX_NUM_PROCESSES=2 " in runs[name]
        assert f"JAX_PROCESS_ID={process}; cd emcid_jax && " in runs[name]


def test_a_run_fails_if_it_fails_on_one_vm(stage: Stage) -> None:
    done = stage.run("compute.sh", "run", "--config=c.py", failures="3", **SLICE)
    assert done.returncode == 3
    assert len(stage.asked()) == 2


@pytest.mark.parametrize("vms", ["", "emcid-1", "emcid-1\nemcid-2\nemcid-3"])
@pytest.mark.parametrize(
    "action", [("run", "--config=c.py"), ("push", "a"), ("fetch", "runs/mine")]
)
def test_nothing_is_asked_of_a_part_of_a_slice(
    stage: Stage, action: tuple[str, ...], vms: str
) -> None:
    done = stage.run("compute.sh", *action, **SLICE | {"VMS": vms})
    assert done.returncode == 1
    assert f"emcid has {len(vms.split())} of 2 VMs" in done.stderr
    assert stage.asked() == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"PROVISION": "SPOT"}, {"--provisioning-model=SPOT"}),
        (
            {"PROVISION": "FLEX_START", "DAYS": "3"},
            {"--provisioning-model=FLEX_START", "--max-run-duration=3d"},
        ),
        (
            {"PROVISION": "RESERVATION_BOUND", "RESERVATION": "r"},
            {"--reservation=r", "--reservation-affinity=specific"},
        ),
    ],
)
def test_ways_to_get_a_vm(stage: Stage, settings: dict[str, str], wanted: set[str]) -> None:
    done = stage.run("compute.sh", "--dry-run", "create", **settings)
    assert done.returncode == 0, done.stderr
    assert wanted <= set(done.stdout.splitlines()[0].split())
    assert "--instance-termination-action=" in done.stdout


def test_a_dry_run_prints_what_a_run_does_and_asks_nothing(stage: Stage) -> None:
    for settings in ({"BUCKET": "gs://b/f", "FILES": "a b"}, SLICE | {"VMS": "emcid-1\nemcid-2"}):
        for action in ("create", "run", "delete"):
            arguments = [action, "--config=c.py", "--workdir=w"][: 3 if action == "run" else 1]
            more: dict[str, Any] = {
                "states": "RUNNING+RUNNING" if "PROJECT" in settings else "RUNNING"
            }
            dry = stage.run("compute.sh", "--dry-run", *arguments, **settings)
            assert dry.returncode == 0, dry.stderr
            assert not (stage.folder / "notes").exists()
            done = stage.run("compute.sh", *arguments, **more, **settings)
            assert done.returncode == 0, done.stderr
            asked = [call for call in stage.asked() if "--command=true" not in call[-1]]
            asked = [call for call in asked if not call[-1].endswith("; true")]
            assert sorted(stage.asked_by(dry.stdout)) == sorted(asked)
            (stage.folder / "notes").unlink()


def test_a_preempted_vm_is_replaced_and_the_run_goes_on(stage: Stage) -> None:
    done = stage.run(
        "compute.sh",
        "keep",
        "--config=c.py",
        "--workdir=w",
        # none; there; the run fails; looked at twice: stopped; a new one is there.
        states="- RUNNING TERMINATED TERMINATED RUNNING",
        failures="255",
        PROVISION="SPOT",
        BUCKET="gs://b/f",
    )
    assert done.returncode == 0, done.stderr
    once = ["create", "create", "ssh", "scp", "ssh", "ssh"]
    assert verbs(stage.asked()) == [*once, "delete", "delete", *once]
    runs = [call[-1] for call in stage.asked() if "emcid_jax.main" in call[-1]]
    assert len(set(runs)) == 1
    assert "launch/kept.sh gs://b/f ../venv/bin/python -m emcid_jax.main" in runs[0]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"MACHINE": "ct6e"}, "MACHINE is 'ct6e'; give one that ends with its chips"),
        ({"TOPOLOGY": "4by4"}, "TOPOLOGY is '4by4'; give chips along each axis"),
        ({"TOPOLOGY": "2x2"}, "TOPOLOGY is 2x2, which has less chips than ct6e-standard-8t"),
        ({"TOPOLOGY": "4x4"}, "several VMs need PROJECT"),
        (SLICE | {"BUCKET": "gs://b/f"}, "BUCKET is for a single VM"),
        ({"PROVISION": "spot"}, "PROVISION is 'spot'; give STANDARD, SPOT, FLEX_START or"),
        ({"PROVISION": "RESERVATION_BOUND"}, "needs RESERVATION"),
    ],
)
def test_a_mistake_is_named_before_anything_is_asked(
    stage: Stage, settings: dict[str, str], error: str
) -> None:
    done = stage.run("compute.sh", "create", **settings)
    assert done.returncode == 2
    assert error in done.stderr
    assert not (stage.folder / "notes").exists()
