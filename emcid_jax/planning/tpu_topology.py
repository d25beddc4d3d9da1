"""TPUs that are not there: a mesh over devices that programs can be compiled for, not run on.

`jax.experimental.topologies` with libtpu compiles on a host without a TPU. libtpu is the extra
`[aot]`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from emcid_jax.planning.machines import Target
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError

# What libtpu reads when it is loaded: that it should not ask Google's metadata server where it is,
# nor insist on being the only process (nothing is run), nor talk.
ENVIRONMENT: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def set_environment() -> None:
    """For libtpu where it is loaded to compile only, or for nothing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def tpu_mesh(target: Target, weight_shards: int = 1) -> Mesh:
    """The mesh over the chips of a TPU topology, for compiling. Before JAX has looked for devices.

    Raises:
        UserError: libtpu is not installed or cannot be used, or there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f'config.target is {target.name!r}, which needs libtpu; pip install "emcid_jax[aot]"'
        )
    from jax.experimental import topologies

    set_environment()
    chips = target.name.partition(":")[2]
    options: dict[str, Any] = {}
    if target.name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a chip's two cores as one device, as on a VM
    one_host = chips == "2x4" and target.name.startswith(("v5e:", "v6e:"))
    if target.devices < 4 or chips.startswith("1") or one_host:
        options["chips_per_host_bounds"] = [*map(int, chips.split("x")), 1, 1][:3]
    try:
        description = topologies.get_topology_desc(target.name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        if "lockfile" in reason:
            reason = "another process holds libtpu; wait for it to end"
        raise UserError(f"config.target is {target.name!r}: {reason}") from error
    return parallel.make_mesh(description.devices, weight_shards)
