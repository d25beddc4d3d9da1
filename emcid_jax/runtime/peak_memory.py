"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import re
from pathlib import Path

import jax

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Peak memory since it was made, in MiB: of the first device, or of the process on a CPU.

    A device's peak is that of the whole process; a process's starts anew, where Linux lets it.
    """

    def __init__(self) -> None:
        self._resettable = True
        try:
            _RESET.write_text("5")
        except OSError:
            self._resettable = False

    def mebibytes(self) -> float | None:
        """The peak so far; None where nobody counts it."""
        statistics = jax.local_devices()[0].memory_stats()
        if statistics and "peak_bytes_in_use" in statistics:
            return round(statistics["peak_bytes_in_use"] / 2**20, 1)
        if not (self._resettable and _STATUS.exists()):
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        return round(int(found[1]) / 2**10, 1) if found else None
