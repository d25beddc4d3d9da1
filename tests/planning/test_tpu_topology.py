"""TPUs that are not there, as libtpu describes them. In a process of its own: see the module."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from emcid_jax.planning.machines import EXAMPLES, GIB, find_target

ASK = """
import json, re, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from emcid_jax.planning.machines import find_target
from emcid_jax.planning.tpu_topology import tpu_mesh

for name in sys.argv[1:]:
    devices = tpu_mesh(find_target(name)).devices.ravel()
    place = SingleDeviceSharding(devices[0])
    much = jax.ShapeDtypeStruct((2**36,), jnp.int32, sharding=place)
    try:
        jax.jit(lambda x: x + 1).lower(much).compile()
    except jax.errors.JaxRuntimeError as error:
        memory = re.search(r"available HBM \\(([\\d.]+)G\\)|of ([\\d.]+)G hbm", str(error))
    chips = len({tuple(device.coords) for device in devices})
    print(json.dumps([len(devices), chips, float(memory[1] or memory[2])]))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra [aot]")
def test_devices_and_memory_are_what_the_compiler_says() -> None:
    names = [name for name in EXAMPLES if find_target(name).kind == "tpu"]
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        target = find_target(name)
        devices, chips, memory = json.loads(line)
        assert devices == target.devices, name
        assert chips * (2 if name.startswith("tpu7x") else 1) == devices, name
        assert target.chip.memory / GIB == pytest.approx(memory, abs=0.01), name
