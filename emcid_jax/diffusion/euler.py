"""Euler's method on the noise scale sigma, plain and ancestral (arXiv 2206.00364, algorithm 1).

The state is `clean + sigma * noise`, whose variance grows with sigma; the denoiser sees it scaled
back to the variance that it was trained on. `sigma_t = sqrt((1 - a_t) / a_t)`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.special import betaincinv

from emcid_jax.diffusion.schedule import NoiseSchedule, TimestepSpacing, spaced_timesteps

NoiseScales = Literal["timesteps", "karras", "exponential", "beta"]
"""How sigma goes from the first step to the last: as the timesteps say; evenly in `sigma^(1/7)`
(arXiv 2206.00364, equation 5) or in `log(sigma)`; by quantiles of Beta(0.6, 0.6) (2407.12173)."""


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
    ancestral: bool = False
    """Each step goes further down than asked and comes back up by fresh noise."""
    noise_scales: NoiseScales = "timesteps"
    log_linear: bool = False
    """Sigma falls evenly in its logarithm over the whole schedule, whatever the timesteps are."""
    sigma_min: float | None = None
    """Last sigma of the scales other than `timesteps`; None: that of the last timestep."""
    sigma_max: float | None = None
    """First sigma of those scales; None: that of the first timestep."""
    ends_at_zero: bool = True
    """Whether the last step ends without noise, or at the schedule's smallest sigma."""

    @property
    def fresh(self) -> int:
        """One noise array per call if ancestral."""
        return self.steps if self.ancestral else 0

    def rows(self) -> EulerRow:
        """One row per step."""
        timesteps, sigma = self._noise_scales()
        sigma, following = sigma[:-1], sigma[1:]
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
        """The noise scaled to the largest sigma."""
        sigma = self._noise_scales()[1].max()
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
        """Timesteps of the steps and sigma at all their ends, descending: [steps], [steps + 1]."""
        schedule, steps = self.schedule, self.steps
        alphas = schedule.alphas_cumprod
        if schedule.rescale_betas_zero_snr:  # as diffusers: sigma would be infinite
            alphas = np.append(alphas[:-1], 2.0**-24)
        table = np.sqrt((1 - alphas) / alphas)
        grid = np.arange(len(table))
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, len(table) - 1, steps)[::-1]
        else:
            timesteps = spaced_timesteps(schedule, steps, self.timestep_spacing)
        last = 0.0 if self.ends_at_zero else table[0]
        if self.log_linear:
            sigma = np.geomspace(table[-1], table[0], steps + 1)
        else:
            sigma = np.append(np.interp(timesteps, grid, table), last)
        if self.noise_scales != "timesteps":
            ends = sigma[[0, -1 if self.log_linear else -2]]
            high = ends[0] if self.sigma_max is None else self.sigma_max
            low = ends[1] if self.sigma_min is None else self.sigma_min
            between = _between(self.noise_scales, high, low, steps)
            timesteps = np.interp(np.log(between), np.log(table), grid)
            sigma = np.append(between, last)
        return timesteps.astype(np.float64), sigma


def _between(scales: NoiseScales, high: float, low: float, steps: int) -> np.ndarray:
    """`steps` values of sigma from `high` to `low`."""
    way = np.linspace(0, 1, steps)
    match scales:
        case "karras":
            return (high ** (1 / 7) + way * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        case "exponential":
            return np.exp(np.log(high) + way * (np.log(low) - np.log(high)))
        case _:
            return low + betaincinv(0.6, 0.6, 1 - way) * (high - low)
