"""Do gates of concept units answer alike in float32, float16 and bfloat16?

    python -m studies.gate_types --count 2000 --workdir runs/gates

The mixed list on the bundled model, block 0, every token of the judge's sentences about every name
of the list. The encoder's weights and the gates' rows are rounded to the type, as an export stores
them, and so is what the gates read. A gate counts as open from half its ramp on. A line per type:
tokens at which any gate is open in one type and shut in float32 or the reverse, and the largest
change of a name's own gate.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from emcid_jax.config import ModelConfig
from emcid_jax.editing.encoder.hidden_units import Units, make_units, openness
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.models.text.encoder import FIRST
from emcid_jax.models.text.transformer import Activation
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.sprites.mixed import mixed_requests
from emcid_jax.workflow.open_model import open_model
from studies import gates

TYPES = ("float16", "bfloat16")
BLOCK = 0
PART = 8192
"""Tokens at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    asked = gates.parser("gate_types", __doc__)
    asked.add_argument("--count", type=int, default=2000)
    options = asked.parse_args(arguments)
    pipeline, requests = open_model(ModelConfig()), mixed_requests()[: options.count]
    measured = gates.measured_statistics(pipeline, options.workdir, BLOCK)
    fitted = gates.fitted_gates(pipeline, requests, measured).fitted
    nothing = np.zeros_like(fitted.directions)
    units = make_units(BLOCK, fitted.directions, measured.mean, fitted.thresholds, nothing)
    texts = [text.replace("{}", one.source) for one in requests for text in SENTENCES]
    activation = pipeline.encoder.model.config.hidden_act
    exact = gates.text_tokens(pipeline, texts, BLOCK).states
    print(f"{len(units.rows):,} gates, {len(exact):,} tokens of {len(texts):,} prompts\n")
    print("| stored type | flips | of open | largest change of an opening |\n|---|---|---|---|")
    for dtype in TYPES:
        lower = gates.text_tokens(rounded(pipeline, dtype), texts, BLOCK).states
        flips, opened, change = flipped(
            units, exact, rounded_units(units, dtype), as_type(lower, dtype), activation
        )
        print(f"| {dtype} | {flips:,} | {opened:,} | {change:.3f} |")
    return 0


def flipped(
    units: Units,
    inputs: Float[np.ndarray, "token dim"],
    others: Units,
    other_inputs: Float[np.ndarray, "token dim"],
    activation: Activation,
) -> tuple[int, int, float]:
    """Pairs of gate and token that are open for one and shut for the other; pairs that are open for
    the first; the largest change."""
    flips = opened = 0
    change = 0.0
    for first in range(0, len(inputs), PART):
        part = slice(first, first + PART)
        before = openness(units, inputs[part], activation)
        after = openness(others, other_inputs[part], activation)
        flips += int(((before > 0.5) != (after > 0.5)).sum())
        opened += int((before > 0.5).sum())
        change = max(change, float(np.abs(after - before).max()))
    return flips, opened, change


def rounded(pipeline: Pipeline, dtype: DTypeLike) -> Pipeline:
    """The pipeline with the first text encoder's weights as `dtype` holds them."""
    lower = jax.tree.map(lambda leaf: as_type(leaf, dtype), dict(pipeline.params[FIRST]))
    return dataclasses.replace(pipeline, params={**pipeline.params, FIRST: lower})


def rounded_units(units: Units, dtype: DTypeLike) -> Units:
    """The units as `dtype` holds them."""
    return dataclasses.replace(
        units, rows=as_type(units.rows, dtype), biases=as_type(units.biases, dtype)
    )


def as_type(array: Any, dtype: DTypeLike) -> np.ndarray:
    """The values that `dtype` holds, in float32."""
    return np.asarray(jnp.asarray(array).astype(dtype).astype(jnp.float32))


if __name__ == "__main__":
    sys.exit(main())
