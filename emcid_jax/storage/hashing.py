"""Hashes of what stored results depend on."""

from __future__ import annotations

import hashlib


def fingerprint(*parts: object) -> str:
    """SHA-256 (hex) of the parts' text: what stored results depend on."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()
