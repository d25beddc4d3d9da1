"""Devices: the mesh and the shardings over it. The only file that knows devices."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

CONCEPT_AXIS = "concept"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all) with the axis `concept`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (CONCEPT_AXIS,), axis_types=(AxisType.Auto,))


def sharded(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the mesh: concepts, captions or prompts."""
    return NamedSharding(mesh, PartitionSpec(CONCEPT_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device: model weights."""
    return NamedSharding(mesh, PartitionSpec())


def padded_size(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple
