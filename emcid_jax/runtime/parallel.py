"""Devices and processes: the mesh, its shardings, and several hosts that run one program.

The only file that knows devices. With several processes every one runs the same code on the same
inputs; arrays over the mesh live on the devices of all of them. In a block of `alone` each is by
itself, with its own devices.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.mail import Mail

CONCEPT_AXIS, WEIGHT_AXIS = "concept", "weight"
AXES = (CONCEPT_AXIS, WEIGHT_AXIS)
"""All axes of the mesh. Work is split over both; along the second, weights may be."""
SPLIT = PartitionSpec(AXES)
"""A leading axis over all devices."""
BLOCK = 4 * 2**20
"""Most bytes that `share` takes."""
COORDINATOR, PROCESSES, PROCESS = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
"""Environment variables that say who is who where nothing else does."""
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


class Process(NamedTuple):
    """This process, among those that were started alike."""

    number: int
    """From 0 on."""
    count: int
    mail: Mail | None
    """How it reaches the others; None if there are none."""


def start() -> None:
    """Joins the processes that were started alike, one per host, before anything is computed.

    Cloud TPU pods, Slurm and Open MPI say who is who. Elsewhere the environment does:
    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.

    UserError if nothing says it, or only a part.
    """
    given = {name: os.environ.get(name, "") for name in (COORDINATOR, PROCESSES, PROCESS)}
    missing = [name for name, value in given.items() if not value]
    if 0 < len(missing) < len(given):
        raise UserError(f"{missing[0]} is not set; set {COORDINATOR}, {PROCESSES} and {PROCESS}")
    arguments: dict[str, Any] = {}
    if not missing:
        for name, keyword in ((PROCESSES, "num_processes"), (PROCESS, "process_id")):
            if not given[name].isdecimal():
                raise UserError(f"{name} is {given[name]!r}; it must be a whole number")
            arguments[keyword] = int(given[name])
        arguments["coordinator_address"] = given[COORDINATOR]
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours, see `preemption`.
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "config.run.distributed is True, but there are no processes to join: "
            f"{str(error).splitlines()[0]} On a machine that is no TPU pod, Slurm or Open MPI job "
            f"set {COORDINATOR}, {PROCESSES} and {PROCESS}"
        ) from error


def use_cpu_devices(count: int) -> None:
    """Makes the CPU `count` devices (0: one per core), each with a copy of the weights.

    Must come before JAX's first use; where its devices exist already, or the environment says how
    many (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`), nothing changes.
    """
    said = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if said or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count or os.cpu_count() or 1)


def me() -> Process:
    """Who this process is."""
    if jax.process_count() == 1:
        return Process(0, 1, None)
    from jax._src import distributed  # Nothing public sends without a program that all must run.

    return Process(jax.process_index(), jax.process_count(), Mail(distributed.global_state.client))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the block this process does as if there were no others, on the devices of its host.

    Nothing waits for another process then: work on different hosts may take different times.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _is_alone() -> bool:
    return _ALONE.get() or jax.process_count() == 1


def is_first() -> bool:
    """Whether this is process 0, the one whose files are kept, or `alone`."""
    return _is_alone() or jax.process_index() == 0


def make_mesh(devices: Sequence[jax.Device] | None = None, weight_shards: int = 1) -> Mesh:
    """A mesh over `devices` with the axes `concept` and `weight`; default: all, or all one's own.

    Each `weight_shards` neighbours share one copy of what `spread` splits. They belong to one
    process, so that every process can read its weights without the others.

    UserError if they cannot be grouped so.
    """
    if devices is None:
        devices = jax.local_devices() if _is_alone() else jax.devices()
    hosts = Counter(device.process_index for device in devices)
    if any(count % weight_shards for count in hosts.values()):
        raise UserError(
            f"weight_shards is {weight_shards}, but there are {max(hosts.values())} "
            "devices on a host; give a number that divides them"
        )
    grid = np.asarray(devices).reshape(-1, weight_shards)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def sharded(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the mesh: concepts, captions or prompts."""
    return NamedSharding(mesh, SPLIT)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device: model weights."""
    return NamedSharding(mesh, PartitionSpec())


def spread(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every weight in `tree`: split along the mesh's second axis.

    The last of the longest axes that this divides is cut; what has none is the same on every
    device. The compiler gathers each weight where it is used, or exchanges activations where they
    are smaller. Told to gather (by a constraint), it keeps all of them from a program's forward to
    its backward pass.
    """
    parts = mesh.shape[WEIGHT_AXIS]

    def one(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not axes:
            return replicated(mesh)
        cut = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * cut, WEIGHT_AXIS))

    return jax.tree.map(one, tree)


def spared(tree: Any, mesh: Mesh) -> int:
    """Bytes of each device that `spread` spares, against a whole copy."""

    def one(leaf: Any, where: NamedSharding) -> int:
        return (leaf.size - math.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, tree, spread(tree, mesh))))


def shapes(tree: Any, sharding: Any) -> Any:
    """The shapes of what `place` would give."""

    def one(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, tree, jax.tree.broadcast(sharding, tree))


def place(tree: Any, sharding: Any) -> Any:
    """Arrays that are equal on every process, put where `sharding` says: one, or one for each."""
    if all(one.is_fully_addressable for one in jax.tree.leaves(sharding)):
        return jax.device_put(tree, sharding)

    def one(leaf: Any, where: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, where, host.__getitem__)

    return jax.tree.map(one, tree, jax.tree.broadcast(sharding, tree))


def fetch(tree: Any) -> Any:
    """Arrays over the mesh as whole NumPy arrays, on every process."""
    if _is_alone():
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def one(leaf: Any) -> np.ndarray:
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        if whole or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def readable(rows: jax.Array, mesh: Mesh) -> jax.Array:
    """What a program gives the host to read: with several processes, the same on every device.

    One process reads the shards of its own devices. Programs without collectives cannot wait for
    each other, as those of many programs in flight on few cores do.
    """
    if _is_alone():
        return rows
    return jax.lax.with_sharding_constraint(rows, replicated(mesh))


def any_process(value: bool) -> bool:
    """Whether `value` holds on any process; the same answer on all of them."""
    return bool(max(_everyones(int(value))))


def total(value: int) -> int:
    """The sum of every process's `value`; the same answer on all of them."""
    return sum(_everyones(value))


def least(value: int) -> int:
    """The smallest `value` of all processes; the same answer on all of them."""
    return min(_everyones(value))


def share(block: bytes) -> bytes:
    """Process 0's `block`, at most `BLOCK` bytes, on every process."""
    if _is_alone():
        return block
    from jax.experimental import multihost_utils

    padded = np.zeros(8 + BLOCK, np.uint8)  # One size, so that one program is compiled.
    if is_first():
        padded[:8] = np.frombuffer(len(block).to_bytes(8, "little"), np.uint8)
        padded[8 : 8 + len(block)] = np.frombuffer(block, np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def padded_size(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def even_chunk(count: int, most: int) -> int:
    """Size of chunks of `count` things, at most `most`, that leaves the last one the fullest."""
    return -(-count // -(-count // most)) if count else 1


def _everyones(value: int) -> list[int]:
    """`value` (not negative, below 2^62) of every process."""
    if _is_alone():
        return [value]
    from jax.experimental import multihost_utils

    halves = np.asarray([value >> 31, value & (2**31 - 1)], np.int32)  # JAX has no int64 here.
    rows = np.asarray(multihost_utils.process_allgather(halves)).tolist()
    return [(high << 31) | low for high, low in rows]
