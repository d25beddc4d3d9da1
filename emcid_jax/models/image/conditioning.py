"""What a denoiser reads beside noisy latents and the time."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Float

TIME_IDS = ("height", "width", "top", "left", "target height", "target width")
"""What SDXL's size conditioning says, in pixels: size of the original, where its crop begins, and
size of the target."""


class Conditioning(NamedTuple):
    """A pytree; the leading axes are the same in all parts. None marks what a family does not have.

    Stable Diffusion 1.x and 2.x read tokens alone, SDXL reads all three.
    """

    tokens: Float[Array, "*row token dim"]
    """Text states that the cross-attention reads."""
    pooled: Float[Array, "*row size"] | None = None
    """One vector for the whole prompt."""
    time_ids: Float[Array, "*row id"] | None = None
    """See `TIME_IDS`."""
