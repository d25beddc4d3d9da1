"""What a run runs on: versions, device, and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

PACKAGES = ("emcid_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "transformers")


def describe() -> dict[str, str]:
    """Versions, git commit of the code (`unknown` outside a checkout) and device."""
    versions = {name: _version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions,
        "git": _git_commit(),
        "device": f"{jax.device_count()} x {device.platform} {device.device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def use_compile_cache() -> None:
    """Keeps compiled programs under the user's cache folder, so that the next run starts at once.

    The folder is the user's own: a cache is code that gets executed.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(base / "emcid_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
