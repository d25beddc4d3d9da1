"""Where a measurement was made."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("emcid_jax", "jax", "jaxlib", "flax", "numpy", "scipy")
PACKAGES += ("torch", "diffusers", "transformers")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions and how busy the machine was before."""
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "system": platform.platform(),
            "load_before": os.getloadavg(),
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for entry in info.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
