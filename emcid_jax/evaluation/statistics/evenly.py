"""A few things of many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def evenly(things: Sequence, most: int) -> list:
    """At most `most` of the things, spread evenly over them; 0: all."""
    if not 0 < most < len(things):
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int)]
