"""What a run runs on: versions, device, and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

from emcid_jax.runtime.user_cache import cache_folder

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
    """Keeps compiled programs in the user's cache folder, so that the next run starts at once.

    UserError if that folder cannot be used.
    """
    jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    """The commit, if this file is what git tracks here: it may lie in a project of the user's."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
