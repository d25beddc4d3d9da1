"""Euler's method on the noise scale sigma, plain and ancestral (arXiv 2206.00364, algorithm 1).

The state is `clean + sigma * noise`, whose variance grows with sigma; the denoiser sees it scaled
back to the variance that it was trained on. `sigma_t = sqrt((1 - a_t) / a_t)`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from emcid_jax.diffusion.schedule import NoiseSchedule, TimestepSpacing, spaced_timesteps

RHO = 7.0
"""Curvature of Karras' noise scales (arXiv 2206.00364, equation 5)."""


class EulerRow(NamedTuple):
    """One call (scalars inside the scan). The slope d(state)/d(sigma) is
    `keep * state + gain * output`; the step is `state + move * slope + renewal * fresh noise`."""

    timestep: Array
    """May be fractional."""
    scale: Array
    """From the state to what the denoiser sees."""
    keep: Array
    gain: Array
    move: Array
    renewal: Array


@dataclasses.dataclass(frozen=True)
class Euler:
    """diffusers' EulerDiscreteScheduler without churn and EulerAncestralDiscreteScheduler."""

    schedule: NoiseSchedule
    steps: int
    timestep_spacing: TimestepSpacing = "linspace"
    steps_offset: int = 0
    ancestral: bool = False
    """Each step goes further down than asked and comes back up by fresh noise."""
    karras: bool = False
    """Noise scales evenly spaced in `sigma^(1 / RHO)` between the first and the last."""

    @property
    def fresh(self) -> int:
        """One noise array per call if ancestral."""
        return self.steps if self.ancestral else 0

    def rows(self) -> EulerRow:
        """One row per step."""
        timesteps, sigma = self._noise_scales()
        following = np.append(sigma[1:], 0.0)
        down = following**2 / sigma if self.ancestral else following
        seen = 1 / np.sqrt(sigma**2 + 1)
        velocity = self.schedule.prediction_type == "v_prediction"
        columns = (
            timesteps,
            seen,
            sigma * seen**2 if velocity else np.zeros_like(sigma),
            seen if velocity else np.ones_like(sigma),
            down - sigma,
            np.sqrt(following**2 - down**2),
        )
        return EulerRow(*(jnp.asarray(column, jnp.float32) for column in columns))

    def start(self, latents: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """The noise scaled to the first sigma."""
        sigma = self._noise_scales()[1][0]
        # `leading` starts below pure noise: there the missing clean image counts as variance 1.
        return latents * float(sigma if self.timestep_spacing != "leading" else np.hypot(sigma, 1))

    def model_input(self, state: Float[Array, "batch *shape"], row: EulerRow) -> Array:
        """The latents at the variance the denoiser knows."""
        return state * row.scale

    def advance(
        self,
        state: Float[Array, "batch *shape"],
        output: Float[Array, "batch *shape"],
        row: EulerRow,
        noise: Float[Array, "batch *shape"] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """One step along the slope; ancestral steps need `noise` of unit variance."""
        state = state + row.move * (row.keep * state + row.gain * output)
        return state if noise is None else state + row.renewal * noise

    def result(self, state: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """The latents."""
        return state

    def _noise_scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigma of every step, descending: float64 [steps]."""
        schedule, steps = self.schedule, self.steps
        alphas = schedule.alphas_cumprod
        if schedule.rescale_betas_zero_snr:  # as diffusers: sigma would be infinite
            alphas = np.append(alphas[:-1], 2.0**-24)
        table = np.sqrt((1 - alphas) / alphas)
        grid = np.arange(len(table))
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, len(table) - 1, steps)[::-1]
        else:
            timesteps = spaced_timesteps(schedule, steps, self.timestep_spacing, self.steps_offset)
        sigma = np.interp(timesteps, grid, table)
        if self.karras:
            ends = sigma[[0, -1]] ** (1 / RHO)
            sigma = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** RHO
            timesteps = np.interp(np.log(sigma), np.log(table), grid)
        return timesteps.astype(np.float64), sigma
