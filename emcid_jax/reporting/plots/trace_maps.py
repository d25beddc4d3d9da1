"""Heat maps of causal tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emcid_jax.reporting.plots.heat_maps import Panel

MEASURES = {
    "end": "recovered, end token",
    "subject": "recovered, subject token",
    "read": "names read right",
}


def panels(rows: Sequence[Mapping[str, Any]], blocks: int) -> list[Panel]:
    """A map per site and measure: window sizes by first block."""
    sizes = sorted({row["size"] for row in rows})
    found = []
    for site in dict.fromkeys(row["site"] for row in rows):
        for measure, title in MEASURES.items():
            values = np.full((len(sizes), blocks), np.nan)
            for row in rows:
                if row["site"] == site:
                    values[sizes.index(row["size"]), row["first"]] = row[measure]["value"]
            label = f"{site}: {title}"
            found.append(
                Panel(label, values, sizes, range(blocks), "restored blocks", "first of them")
            )
    return found
