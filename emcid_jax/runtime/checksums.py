"""Files that hold a checksum over all their own bytes, so that any flipped one is found.

The checksum is a JSON field `"checksum"` somewhere in the file. It is computed with zeros in its
own place. Text of a user cannot pass for the field: JSON escapes its quotes.
"""

from __future__ import annotations

import hashlib
import re

UNSEALED = "0" * 64
"""Value of the field `checksum` in what `sealed` takes."""

_FIELD = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')


def sealed(content: bytes) -> bytes:
    """`content` with the checksum filled in. ValueError if it has no field for it."""
    return _filled(content, hashlib.sha256(content).hexdigest())


def is_intact(content: bytes) -> bool:
    """Whether `content` is what `sealed` gave, to the byte."""
    found = _FIELD.search(content)
    if found is None:
        return False
    seal = found[1].decode()
    return hashlib.sha256(_filled(content, UNSEALED)).hexdigest() == seal


def _filled(content: bytes, seal: str) -> bytes:
    found = _FIELD.search(content)
    if found is None:
        raise ValueError("no field for a checksum")
    return content[: found.start(1)] + seal.encode() + content[found.end(1) :]
