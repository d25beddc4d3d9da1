"""What a run runs on: versions, device, and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

from emcid_jax.storage.user_cache import cache_folder

PACKAGES = ("emcid_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "transformers")


def describe() -> dict[str, str]:
    """Versions, git commit of the code (`unknown` outside a checkout of it) and device."""
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


def _git_commit(package: Path = Path(__file__).parents[1]) -> str:
    """The commit of the checkout that `package` is the code of.

    A package that lies in somebody else's repository (a virtual environment, a copy) has none.
    """
    top, tracked = _git(package, "rev-parse", "--show-toplevel"), _git(package, "ls-files", ".")
    if not (top and tracked) or Path(top) != package.parent.resolve():
        return "unknown"
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40") or "unknown"


def _git(folder: Path, *command: str) -> str:
    """What git says in `folder`; nothing if there is no git or no repository."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            capture_output=True, text=True, timeout=10, check=True, env=own,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
