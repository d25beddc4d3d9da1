"""What is left of the held-out loss of memories, by what the mixed list asks for.

    python -m studies.memory_losses runs/evaluate/bank

The bank is one that `configs/evaluate.py` filled. A line per objective and task: memories, and the
share of their held-out loss that is left, of the whole loss and of its text part; median, 95th
percentile, and the worst with its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcid_jax.editing.bank import memories as bank
from emcid_jax.sprites.mixed import mixed_requests

TOTAL, TEXT = 0, 2
"""Places in `Memory.start` and `Memory.end`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.memory_losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bank", type=Path)
    folder = parser.parse_args(arguments).bank
    tasks = {one.source: one.task for one in mixed_requests()}
    found: dict[tuple[str, str], list[tuple[str, bank.Memory]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        record = bank.read_record(folder, file.stem)
        source, settings = record.provenance["source"], record.provenance["stage_one"]
        kind = settings["objective"], tasks.get(source, "of another list")
        found.setdefault(kind, []).append((source, record.memory))
    print("| objective | task | memories | median | text alone | 95 % | worst |")
    print("|---|---|---|---|---|---|---|")
    for kind, pairs in sorted(found.items()):
        starts = np.stack([memory.start for _, memory in pairs])
        ends = np.stack([memory.end for _, memory in pairs])
        left, text = (ends[:, part] / starts[:, part] for part in (TOTAL, TEXT))
        name, worst = pairs[int(left.argmax())][0], left.max()
        shares = " | ".join(f"{x:.3f}" for x in (np.median(left), np.median(text)))
        cells = f"{shares} | {np.quantile(left, 0.95):.3f} | {worst:.2f} ({name})"
        print(f"| {' | '.join(kind)} | {len(pairs)} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
