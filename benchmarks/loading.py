"""`python -m benchmarks.loading`: a model from safetensors against the same from Orbax.

Both are read onto the default device, checks included, and take turns in one process; the files are
in the page cache. Writes nothing but a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import take_turns
from emcid_jax.config import ModelConfig
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.sprites.bundled import model_folder
from emcid_jax.storage import checkpoints
from emcid_jax.tasks import convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the seconds of each and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--model", default="sprites", help="`sprites` or a diffusers folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="source", help="stored type in Orbax")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "orbax"
        model = ModelConfig(path=options.model, export_dtype=options.dtype)
        convert.run(convert.ConvertConfig(model=model), folder)

        def read(source: Path) -> Any:
            return jax.block_until_ready(load_pipeline(source).params)

        source = model_folder(options.model)
        tensors, orbax = take_turns(options.repeats, lambda: read(source), lambda: read(folder))
        (checked,) = take_turns(options.repeats, lambda: checkpoints.require_intact(folder))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(orbax.result))
    print(f"{size / 2**20:.0f} MiB of parameters, {len(jax.devices())} devices")
    print(f"safetensors {tensors.seconds:.3f} s")
    print(f"Orbax       {orbax.seconds:.3f} s, of which checksums {checked.seconds:.3f} s")
    print(f"ratio       {tensors.seconds / orbax.seconds:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
