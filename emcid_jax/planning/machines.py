"""Machines that a run can be planned for: chips, how many, and what they can do.

The figures are the makers' peak figures; `memory` is what programs may use of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from emcid_jax.runtime.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One device; rates are peaks."""

    memory: int
    """Bytes that programs may use."""
    flops: Mapping[str, float]
    """FLOP/s of matrix products: computing in `bfloat16`, in `float32` at JAX's default precision,
    and in `float32` at the `highest`."""
    bandwidth: float
    """Bytes per second between memory and chip."""
    source: str
    """Where the figures are from."""


class Target(NamedTuple):
    """A machine."""

    name: str
    kind: str
    """`tpu`, `gpu` or `cpu`."""
    devices: int
    chip: Chip


def _tpu(memory: float, tera: float, giga: float, page: str) -> Chip:
    """A JAX device; float32 products pass through the bfloat16 units: once by default, six times at
    `highest`."""
    flops = {"bfloat16": tera * 1e12, "float32": tera * 1e12, "highest": tera * 1e12 / 6}
    source = f"cloud.google.com/tpu/docs/{page}; memory: libtpu 0.0.42.1's limit"
    return Chip(int(memory * GIB), flops, giga * 1e9, source)


CHIPS: Mapping[str, Chip] = {
    "v4": _tpu(30.75, 275.0, 1200.0, "v4"),
    "v5e": _tpu(15.75, 197.0, 819.0, "v5e"),
    "v5p": _tpu(95.74, 459.0, 2765.0, "v5p"),
    "v6e": _tpu(31.25, 918.0, 1600.0, "v6e"),
    "tpu7x": _tpu(94.75, 2307.0 / 2, 7380.0 / 2, "tpu7x (halves of a chip)"),
    "h200": Chip(
        int(141e9 * 0.95),
        {"bfloat16": 989e12, "float32": 494e12, "highest": 67e12},
        4.8e12,
        "NVIDIA H200 SXM data sheet, dense; memory: 5 % left to driver and libraries",
    ),
}
DEVICES_PER_CHIP: Mapping[str, int] = {"tpu7x": 2}
"""JAX devices of a chip, one where nothing is said. Each is a `Chip` of its own in `CHIPS`."""
CPU_FLOPS_PER_CYCLE = 32
"""float32 operations of a core per cycle: two fused multiply-adds on 8 lanes (AVX2), assumed."""
CPU_HERTZ = 2.5e9
CPU_BANDWIDTH = 20e9
EXAMPLES = ("v5e:2x4", "v6e:2x4", "tpu7x:2x2x1", "v4:2x2x2", "v5p:2x2x1", "h200", "cpu")
_TOPOLOGY = re.compile(r"((?:v|tpu)\w+):(\d+(?:x\d+)*)")


def find_target(name: str) -> Target:
    """The machine of that name: `<TPU generation>:<chips along each axis>`, `h200` or `cpu`.

    Raises:
        UserError: there is none of that name.
    """
    if name == "cpu":
        return Target(name, "cpu", 1, _host())
    found = _TOPOLOGY.fullmatch(name)
    if found and found[1] in CHIPS:
        devices = math.prod(map(int, found[2].split("x"))) * DEVICES_PER_CHIP.get(found[1], 1)
        return Target(name, "tpu", devices, CHIPS[found[1]])
    if name in CHIPS and not name.startswith(("v", "tpu")):
        return Target(name, "gpu", 1, CHIPS[name])
    raise UserError(f"config.target is {name!r}, which is not known; e.g. {', '.join(EXAMPLES)}")


def _host() -> Chip:
    """This machine: half its memory is for programs, its speed is assumed."""
    cores = os.cpu_count() or 1
    rate = cores * CPU_FLOPS_PER_CYCLE * CPU_HERTZ
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    flops = {"bfloat16": rate, "float32": rate, "highest": rate}
    source = f"assumed: {cores} cores x {CPU_FLOPS_PER_CYCLE} FLOP x {CPU_HERTZ / 1e9} GHz"
    return Chip(memory, flops, CPU_BANDWIDTH, source)
