"""The noise schedule of a `scheduler_config.json`: how much noise each timestep carries."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

from emcid_jax.runtime.errors import UserError, shown

BetaSchedule = Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]

STEPS_OFFSET = 1
"""Added to the timesteps of `leading`; diffusers' pipeline overrules `steps_offset` with it."""
MOST_TIMESTEPS = 100_000
"""A longer schedule is a mistake in the file; Stable Diffusion has 1,000 timesteps."""


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noising `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise` at integer timesteps.

    Holds only the numbers that define the schedule, so it is hashable and can be a static argument
    of `jax.jit`; the tables are computed on first use, in float64.
    """

    num_train_timesteps: int = 1000
    """Timesteps are 0 (nearly clean) .. num_train_timesteps - 1 (nearly noise)."""
    beta_start: float = 0.0001
    """Variance added at the first timestep."""
    beta_end: float = 0.02
    """Variance added at the last timestep."""
    beta_schedule: BetaSchedule = "linear"
    """How the variance goes from start to end."""
    trained_betas: tuple[float, ...] | None = None
    """The variances themselves; replaces the three fields above."""
    rescale_betas_zero_snr: bool = False
    """Shift and scale so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1)."""
    prediction_type: PredictionType = "epsilon"
    """What the denoiser returns: the noise, or the velocity `sqrt(a) noise - sqrt(1 - a) x_0`."""

    @classmethod
    def from_dict(cls, scheduler_config: Mapping[str, Any]) -> NoiseSchedule:
        """Reads a parsed `scheduler_config.json`; missing fields have diffusers' defaults.

        Raises:
            UserError: a field has a value this package does not support.
        """
        betas = scheduler_config.get("trained_betas")
        if betas is not None and not isinstance(betas, list | tuple):
            raise unsupported("trained_betas", betas, "use null or a list of numbers")
        wrong = [beta for beta in betas or () if not _is_share(beta)]
        if wrong:
            raise unsupported("trained_betas", wrong[0], "use numbers between 0 and 1")
        schedule = cls(
            num_train_timesteps=integer(
                scheduler_config, "num_train_timesteps", 1000, minimum=2, maximum=MOST_TIMESTEPS
            ),
            beta_start=number(scheduler_config, "beta_start", 0.0001),
            beta_end=number(scheduler_config, "beta_end", 0.02),
            beta_schedule=choice(
                scheduler_config,
                "beta_schedule",
                "linear",
                ("scaled_linear", "linear", "squaredcos_cap_v2"),
            ),
            trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
            rescale_betas_zero_snr=boolean(scheduler_config, "rescale_betas_zero_snr", False),
            prediction_type=choice(
                scheduler_config, "prediction_type", "epsilon", ("epsilon", "v_prediction")
            ),
        )
        if betas is not None and len(betas) != schedule.num_train_timesteps:
            raise unsupported(
                "trained_betas",
                f"{len(betas)} numbers",
                f"give num_train_timesteps={schedule.num_train_timesteps} of them",
            )
        if schedule.rescale_betas_zero_snr and schedule.prediction_type == "epsilon":
            # At pure noise the noise says nothing about the image: x_0 = (x - noise) / 0.
            raise unsupported(
                "rescale_betas_zero_snr", True, "it needs prediction_type v_prediction"
            )
        # Of so little signal float32 keeps nothing. Pure noise is asked for by rescaling.
        if schedule._alphas()[-1] < np.finfo(np.float32).tiny:
            field = "beta_end" if betas is None else "trained_betas"
            raise unsupported(
                field, scheduler_config.get(field), "nothing of the image is left; use less noise"
            )
        return schedule

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """`a_t`, the share of the clean variance left at t: float64 [num_train_timesteps]."""
        alphas = self._alphas()
        if not self.rescale_betas_zero_snr:
            return alphas
        signal = np.sqrt(alphas)
        return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2

    def _alphas(self) -> np.ndarray:
        """`a_t` before rescaling."""
        return np.cumprod(1.0 - self._betas())

    def _betas(self) -> np.ndarray:
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas)
        steps = self.num_train_timesteps
        match self.beta_schedule:
            case "linear":
                return np.linspace(self.beta_start, self.beta_end, steps)
            case "scaled_linear":
                return np.linspace(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
            case "squaredcos_cap_v2":  # arXiv 2102.09672, equation 17
                edges = np.arange(steps + 1) / steps
                signal = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
                return np.minimum(1 - signal[1:] / signal[:-1], 0.999)

    def signal_and_noise(
        self, t: Int[Array, "*batch"]
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """`sqrt(a_t)` and `sqrt(1 - a_t)` in float32 at (traced) timesteps."""
        signal = jnp.asarray(np.sqrt(self.alphas_cumprod), jnp.float32)
        noise = jnp.asarray(np.sqrt(1.0 - self.alphas_cumprod), jnp.float32)
        return signal[t], noise[t]

    def add_noise(
        self,
        clean: Float[Array, "batch *shape"],
        noise: Float[Array, "batch *shape"],
        t: Int[Array, "batch"],
    ) -> Float[Array, "batch *shape"]:
        """The noisy latents `sqrt(a_t) clean + sqrt(1 - a_t) noise`, one timestep per example."""
        signal, sigma = self._expand(t, clean)
        return signal * clean + sigma * noise

    def training_target(
        self,
        clean: Float[Array, "batch *shape"],
        noise: Float[Array, "batch *shape"],
        t: Int[Array, "batch"],
    ) -> Float[Array, "batch *shape"]:
        """What a perfect denoiser returns for `add_noise(clean, noise, t)`: noise or velocity."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._expand(t, clean)
        return signal * noise - sigma * clean

    def noise_from(
        self,
        output: Float[Array, "batch *shape"],
        noisy: Float[Array, "batch *shape"],
        t: Int[Array, "batch"],
    ) -> Float[Array, "batch *shape"]:
        """The noise that the denoiser's output claims is in `noisy`."""
        if self.prediction_type == "epsilon":
            return output
        signal, sigma = self._expand(t, noisy)
        return signal * output + sigma * noisy

    def clean_from(
        self,
        output: Float[Array, "batch *shape"],
        noisy: Float[Array, "batch *shape"],
        t: Int[Array, "batch"],
    ) -> Float[Array, "batch *shape"]:
        """The clean latents that the denoiser's output claims are under `noisy`."""
        signal, sigma = self._expand(t, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output

    def _expand(
        self, t: Int[Array, "batch"], like: Shaped[Array, "batch *shape"]
    ) -> tuple[Array, Array]:
        signal, sigma = self.signal_and_noise(t)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return signal.reshape(shape), sigma.reshape(shape)


def spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: TimestepSpacing) -> np.ndarray:
    """The descending timesteps of the denoising steps: int64 [steps] (arXiv 2305.08891, table 2).

    Raises:
        UserError: diffusers divides the schedule into so many steps wrongly.
    """
    total = schedule.num_train_timesteps
    match spacing:
        case "leading":
            timesteps = np.arange(steps)[::-1] * (total // steps) + STEPS_OFFSET
            if timesteps[0] >= total:
                fix = f"with timestep_spacing leading use at most {total - 1}"
                raise unsupported("steps", steps, fix)
        case "linspace":
            timesteps = np.round(np.linspace(0, total - 1, steps))[::-1].astype(np.int64)
        case "trailing":
            # Where the stride is rounded down, diffusers calls once more, at timestep -1.
            ends = {n: np.arange(total, 0, -total / n) for n in range(max(steps - 9, 1), steps + 1)}
            if len(ends[steps]) != steps:
                good = max(n for n, found in ends.items() if len(found) == n)
                fix = f"with timestep_spacing trailing use another number, e.g. {good}"
                raise unsupported("steps", steps, fix)
            timesteps = np.round(ends[steps]).astype(np.int64) - 1
    return timesteps


def unsupported(field: str, value: object, fix: str) -> UserError:
    """The error for a value in `scheduler_config.json` that we do not support."""
    return UserError(f"scheduler_config.json: {field}={shown(value)} is not supported; {fix}")


def choice(config: Mapping[str, Any], field: str, default: str, options: tuple[str, ...]) -> Any:
    """A field that must be one of `options`."""
    value = config.get(field, default)
    if not isinstance(value, str) or value not in options:
        raise unsupported(field, value, f"use one of {', '.join(options)}")
    return value


def boolean(config: Mapping[str, Any], field: str, default: bool) -> bool:
    """A field that must be true or false."""
    value = config.get(field, default)
    if not isinstance(value, bool):
        raise unsupported(field, value, "use true or false")
    return value


def integer(config: Mapping[str, Any], field: str, default: int, minimum: int, maximum: int) -> int:
    """A field that must be a whole number in [minimum, maximum]."""
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise unsupported(field, value, f"use a whole number of {minimum} to {maximum}")
    return value


def number(config: Mapping[str, Any], field: str, default: float) -> float:
    """A field that must be a number in (0, 1)."""
    value = config.get(field, default)
    if not _is_share(value):
        raise unsupported(field, value, "use a number between 0 and 1")
    return float(value)


def _is_share(value: object) -> bool:
    """A number in (0, 1); NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(0 < value < 1)
