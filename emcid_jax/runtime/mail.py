"""Bytes that one process leaves for another, which takes them when it has time.

They lie in the store of JAX's coordinator, which process 0 runs. Unlike a collective it makes
nobody wait, so processes may do different things meanwhile.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

BLOCK = 2**20
"""Most bytes that are sent at once."""
PAUSE = 1.0
"""Seconds between two looks."""
_PARTS = "parts"


@dataclasses.dataclass(frozen=True)
class Mail:
    """Letters of any size by their names; a name is used once."""

    store: Any
    """JAX's client of the coordinator."""

    def send(self, name: str, content: bytes) -> None:
        """Leaves `content` under `name`; it is there as a whole or not yet."""
        parts = range(0, len(content), BLOCK)
        for number, start in enumerate(parts):
            self.store.key_value_set_bytes(f"{name}/{number}", content[start : start + BLOCK])
        self.store.key_value_set_bytes(f"{name}/{_PARTS}", str(len(parts)).encode())

    def take(self, name: str) -> bytes | None:
        """What lies under `name`, which is removed there; None if nothing came yet."""
        parts = self._get(f"{name}/{_PARTS}")
        if parts is None:
            return None
        content = b"".join(
            self.store.key_value_try_get_bytes(f"{name}/{number}") for number in range(int(parts))
        )
        self.store.key_value_delete(f"{name}/")
        return content

    def wait_for(self, name: str) -> None:
        """Returns when something lies under `name`, which stays there."""
        while self._get(f"{name}/{_PARTS}") is None:
            time.sleep(PAUSE)  # Unlike a wait in the store, a signal ends this.

    def _get(self, key: str) -> bytes | None:
        try:
            return self.store.key_value_try_get_bytes(key)
        except RuntimeError as error:
            if str(error).startswith("NOT_FOUND"):
                return None
            raise
