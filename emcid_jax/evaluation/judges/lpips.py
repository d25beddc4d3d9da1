"""Perceptual change of pictures, from distances (LPIPS or alike) to the clean model's pictures.

Both pictures of a pair have the same prompt and seed; distances are >= 0, and 0 is no change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from emcid_jax.evaluation.judges.resize import stretched
from emcid_jax.evaluation.statistics.bootstrap import BOOTSTRAP_DRAWS, Estimate, difference_of_means
from emcid_jax.models.scoring.lpips import Lpips, read_lpips
from emcid_jax.runtime.finite import require_finite

SIDE = 64
"""Height and width at which the released code compares pictures."""
BATCH = 32
"""Pairs that go through the network together."""


class PerceptualChange(NamedTuple):
    """Means over concepts."""

    lpips_e: Estimate
    """Of erased concepts' pictures: high is good."""
    lpips_u: Estimate
    """Of pictures that should stay: low is good."""
    difference: Estimate
    """LPIPS_e - LPIPS_u."""


def perceptual_change(
    erased: Float[np.ndarray, " erased"],
    unerased: Float[np.ndarray, " unerased"],
    *,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> PerceptualChange:
    """LPIPS_e, LPIPS_u and their difference.

    Args:
        erased, unerased: mean distance of each concept's pictures; concepts are resampled.
        seed, draws: of the bootstrap.
    """
    return PerceptualChange(*difference_of_means(erased, unerased, seed=seed, draws=draws))


@dataclasses.dataclass(frozen=True, eq=False)
class Lpips64:
    """LPIPS (AlexNet) between pictures of 64 x 64; made by `load_lpips`."""

    params: Mapping[str, Any]

    @staticmethod
    def small(images: Sequence[np.ndarray] | np.ndarray) -> UInt8[np.ndarray, "image 64 64 3"]:
        """Pictures of any size as they are compared: stretched, antialiased, in bytes."""
        small = [stretched(image, (SIDE, SIDE)) for image in images]
        return np.round(np.stack(small)).astype(np.uint8)

    def __call__(
        self, first: Float[np.ndarray, "pair _"], second: Float[np.ndarray, "pair _"]
    ) -> Float[np.ndarray, " pair"]:
        """Distance of every pair of flattened `small` pictures. UserError if one is not finite."""
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(first), BATCH):
            pair = [side[start : start + BATCH] for side in (first, second)]
            count = len(pair[0])
            padded = [np.resize(side, (BATCH, SIDE, SIDE, 3)) for side in pair]
            found.append(np.asarray(_distances(self.params, *padded))[:count])
        return require_finite(np.concatenate(found), "LPIPS distances", "pair")


def load_lpips(file: Path) -> Lpips64:
    """From a `.safetensors` file; UserError for an unfit one, see `models/scoring/lpips.py`."""
    return Lpips64(read_lpips(file))


@jax.jit
def _distances(
    params: Any,
    first: Float[Array, "pair height width 3"],
    second: Float[Array, "pair height width 3"],
) -> Float[Array, " pair"]:
    return jnp.asarray(Lpips().apply({"params": params}, first / 127.5 - 1, second / 127.5 - 1))
