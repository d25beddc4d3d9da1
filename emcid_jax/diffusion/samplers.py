"""Samplers: what to do with each prediction of the denoiser. They know no model.

A sampler turns a step count into `rows`, a table computed on the host with one row per call of the
denoiser, and updates its state with one row at a time. `sampling.sample` scans over the rows, so a
new sampler is a new pair of row and state and touches nothing else. All samplers are frozen and
hashable: they are static arguments of compiled programs. The Euler samplers are in `euler`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from emcid_jax.diffusion.euler import Euler, NoiseScales
from emcid_jax.diffusion.schedule import (
    STEPS_OFFSET,
    NoiseSchedule,
    TimestepSpacing,
    boolean,
    choice,
    integer,
    spaced_timesteps,
    unsupported,
)


@runtime_checkable
class Sampler(Protocol):
    """What `sampling.sample` needs. `Row` and `State` are the sampler's own pytrees."""

    @property
    def fresh(self) -> int:
        """Noise arrays that an image takes on its way: one per call, or none."""
        ...

    def rows(self) -> Any:
        """The table: arrays with one leading entry per call; `timestep` goes to the denoiser."""
        ...

    def start(self, latents: Array) -> Any:
        """The state that belongs to unit-variance initial noise."""
        ...

    def model_input(self, state: Any, row: Any) -> Array:
        """What the denoiser sees."""
        ...

    def advance(self, state: Any, output: Array, row: Any, noise: Array | None = None) -> Any:
        """The state after the denoiser's output for this row; `noise` is the call's fresh noise."""
        ...

    def result(self, state: Any) -> Array:
        """The sampled latents of the final state."""
        ...


class DdimRow(NamedTuple):
    """One call (scalars inside the scan): sqrt(a) and sqrt(1 - a) before and after the step."""

    timestep: Array
    signal: Array
    noise: Array
    next_signal: Array
    next_noise: Array


@dataclasses.dataclass(frozen=True)
class Ddim:
    """Deterministic DDIM (eta = 0): arXiv 2010.02502, equation 12."""

    schedule: NoiseSchedule
    steps: int
    timestep_spacing: TimestepSpacing = "leading"
    set_alpha_to_one: bool = True
    fresh: ClassVar[int] = 0

    def rows(self) -> DdimRow:
        """One row per step."""
        timesteps = spaced_timesteps(self.schedule, self.steps, self.timestep_spacing)
        stride = self.schedule.num_train_timesteps // self.steps
        alpha = _alphas(self.schedule, timesteps, self.set_alpha_to_one)
        next_alpha = _alphas(self.schedule, timesteps - stride, self.set_alpha_to_one)
        return DdimRow(
            timestep=jnp.asarray(timesteps, jnp.int32),
            signal=_float32(np.sqrt(alpha)),
            noise=_float32(np.sqrt(1 - alpha)),
            next_signal=_float32(np.sqrt(next_alpha)),
            next_noise=_float32(np.sqrt(1 - next_alpha)),
        )

    def start(self, latents: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """The noise itself."""
        return latents

    def model_input(self, state: Float[Array, "batch *shape"], row: DdimRow) -> Array:
        """The latents as they are."""
        return state

    def advance(
        self,
        state: Float[Array, "batch *shape"],
        output: Float[Array, "batch *shape"],
        row: DdimRow,
        noise: Array | None = None,
    ) -> Float[Array, "batch *shape"]:
        """Goes to the predicted clean latents and adds the next timestep's share of the noise."""
        if self.schedule.prediction_type == "epsilon":
            inside, clean = output, (state - row.noise * output) / row.signal
        else:
            inside = row.signal * output + row.noise * state
            clean = row.signal * state - row.noise * output
        return row.next_signal * clean + row.next_noise * inside

    def result(self, state: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        """The latents."""
        return state


class PndmRow(NamedTuple):
    """One call. The step is `latents <- scale * latents - slope * e`; e is the weighted mean of the
    newest outputs, turned from velocity into noise by `signal` and `noise` if need be."""

    timestep: Array
    weights: Array
    signal: Array
    noise: Array
    scale: Array
    slope: Array
    again: Array
    """The second call: redo the first step from the initial latents and forget this output."""


class PndmState(NamedTuple):
    """Latents, where they started, and the last three outputs (newest first)."""

    latents: Float[Array, "batch *shape"]
    initial: Float[Array, "batch *shape"]
    outputs: Float[Array, "3 batch *shape"]


@dataclasses.dataclass(frozen=True)
class Pndm:
    """PNDM without Runge-Kutta steps, that is PLMS (arXiv 2202.09778, equations 9 and 12).

    `steps` steps make `steps + 1` calls: the first step is done twice, the second time with the
    mean of the outputs at both its ends (Heun's rule), because there is no history yet. One step is
    one call, as in diffusers.
    """

    schedule: NoiseSchedule
    steps: int
    timestep_spacing: TimestepSpacing = "leading"
    set_alpha_to_one: bool = False
    fresh: ClassVar[int] = 0

    def rows(self) -> PndmRow:
        """One row per call."""
        called = spaced_timesteps(self.schedule, self.steps, self.timestep_spacing)
        called = np.concatenate([called[:2], called[1:]]) if self.steps > 1 else called
        stride = self.schedule.num_train_timesteps // self.steps
        again = np.arange(len(called)) == 1
        # The second call's output belongs to the end of the step that it repeats.
        left = np.where(again, called + stride, called)
        alpha = _alphas(self.schedule, left, self.set_alpha_to_one)
        next_alpha = _alphas(self.schedule, left - stride, self.set_alpha_to_one)
        slope = (next_alpha - alpha) / (
            alpha * np.sqrt(1 - next_alpha) + np.sqrt(alpha * (1 - alpha) * next_alpha)
        )
        # Adams-Bashforth of rising order; rows weigh (this output, the one before, ...).
        weights = np.tile([55, -59, 37, -9], (max(len(called), 4), 1)) / 24
        weights[0] = 1, 0, 0, 0
        weights[1] = 1 / 2, 1 / 2, 0, 0
        weights[2] = 3 / 2, -1 / 2, 0, 0
        weights[3] = 23 / 12, -16 / 12, 5 / 12, 0
        return PndmRow(
            timestep=jnp.asarray(called, jnp.int32),
            weights=_float32(weights[: len(called)]),
            signal=_float32(np.sqrt(alpha)),
            noise=_float32(np.sqrt(1 - alpha)),
            scale=_float32(np.sqrt(next_alpha / alpha)),
            slope=_float32(slope),
            again=jnp.asarray(again),
        )

    def start(self, latents: Float[Array, "batch *shape"]) -> PndmState:
        """The noise and no history."""
        return PndmState(latents, latents, jnp.zeros((3, *latents.shape), latents.dtype))

    def model_input(self, state: PndmState, row: PndmRow) -> Array:
        """The latents as they are."""
        return state.latents

    def advance(
        self,
        state: PndmState,
        output: Float[Array, "batch *shape"],
        row: PndmRow,
        noise: Array | None = None,
    ) -> PndmState:
        """One linear multistep update."""
        outputs = jnp.concatenate([output[None], state.outputs])
        latents = jnp.where(row.again, state.initial, state.latents)
        inside = jnp.tensordot(row.weights, outputs, axes=1, precision="highest")
        if self.schedule.prediction_type == "v_prediction":
            inside = row.signal * inside + row.noise * latents
        kept = jnp.where(row.again, state.outputs, outputs[:3])
        return PndmState(row.scale * latents - row.slope * inside, state.initial, kept)

    def result(self, state: PndmState) -> Float[Array, "batch *shape"]:
        """The latents."""
        return state.latents


def make_sampler(scheduler_config: Mapping[str, Any], steps: int) -> Ddim | Pndm | Euler:
    """The sampler that a parsed `scheduler_config.json` names, with `steps` denoising steps.

    It is what diffusers' `StableDiffusionPipeline` makes of the file. The pipeline overrules two
    fields: it never clips latents (`clip_sample`) and offsets `leading` timesteps by 1
    (`steps_offset`). Missing fields have the defaults of the class. Fields of other classes are
    not read.

    Raises:
        UserError: an unknown `_class_name`, one of UNDRAWN, or a value we do not support; names
            field and value.
    """
    if scheduler_config.get("_class_name") in UNDRAWN:
        raise unsupported(
            "_class_name",
            scheduler_config["_class_name"],
            f"to draw, let `scheduler` in model_index.json name one of {', '.join(SAMPLERS)} (task "
            "sample: give --config.sampling.scheduler)",
        )
    name = choice(scheduler_config, "_class_name", "", tuple(SAMPLERS))
    schedule = NoiseSchedule.from_dict(scheduler_config)
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise unsupported("steps", steps, f"use 1 to {schedule.num_train_timesteps}")
    spacing = _spacing(scheduler_config)
    spaced_timesteps(schedule, steps, spacing)  # raises before anything is compiled
    return SAMPLERS[name](scheduler_config, schedule, steps, spacing)


def require_known(scheduler_config: Mapping[str, Any], overruled: bool) -> None:
    """Refuses what drawing would refuse, whatever the number of steps.

    A model of an UNDRAWN class is taken: it can be edited by text alone, and be drawn with after
    another sampler is chosen. `overruled`: whether `make_sampler` may overrule fields, see
    `require_nothing_overruled`.
    """
    if scheduler_config.get("_class_name") in UNDRAWN:
        if boolean(scheduler_config, "use_flow_sigmas", False):
            raise unsupported("use_flow_sigmas", True, "flow matching has another noise schedule")
        return
    make_sampler(scheduler_config, 1)
    if not overruled:
        require_nothing_overruled(scheduler_config)


def require_nothing_overruled(scheduler_config: Mapping[str, Any]) -> None:
    """Refuses a file of which `make_sampler` overrules a field.

    `StableDiffusionXLPipeline` overrules none, so it would draw differently from that file.

    Raises:
        UserError: `leading` timesteps with another offset than 1, or DDIM that clips latents.
    """
    offset = integer(scheduler_config, "steps_offset", 0, 0, 10**6)
    if _spacing(scheduler_config) == "leading" and offset != STEPS_OFFSET:
        raise unsupported("steps_offset", offset, f"set it to {STEPS_OFFSET}, as SDXL does")
    ddim = scheduler_config["_class_name"] == "DDIMScheduler"
    if ddim and boolean(scheduler_config, "clip_sample", True):
        raise unsupported("clip_sample", True, "set it to false, as SDXL does")


def _spacing(config: Mapping[str, Any]) -> TimestepSpacing:
    euler = config["_class_name"].startswith("Euler")
    options = ("leading", "linspace", "trailing")
    return choice(config, "timestep_spacing", "linspace" if euler else "leading", options)


def _make_ddim(config: Mapping[str, Any], *common: Any) -> Ddim:
    if boolean(config, "thresholding", False):
        raise unsupported("thresholding", True, "dynamic thresholding is for pixel models")
    boolean(config, "clip_sample", True)  # diffusers clips by anything else that counts as true
    return Ddim(*common, set_alpha_to_one=boolean(config, "set_alpha_to_one", True))


def _make_pndm(config: Mapping[str, Any], schedule: NoiseSchedule, *common: Any) -> Pndm:
    if not boolean(config, "skip_prk_steps", False):
        raise unsupported("skip_prk_steps", False, "set it to true, as Stable Diffusion does")
    if schedule.rescale_betas_zero_snr:
        raise unsupported("rescale_betas_zero_snr", True, "PNDM cannot start from pure noise")
    return Pndm(schedule, *common, set_alpha_to_one=boolean(config, "set_alpha_to_one", False))


def _make_euler(config: Mapping[str, Any], *common: Any) -> Euler:
    choice(config, "timestep_type", "discrete", ("discrete",))
    asked: list[NoiseScales] = [
        scales for scales, field in _SCALES.items() if boolean(config, field, False)
    ]
    if len(asked) > 1:
        one, two, *_ = (_SCALES[scales] for scales in asked)
        raise unsupported(two, True, f"{one} is true too; use one of them")
    linear = choice(config, "interpolation_type", "linear", ("linear", "log_linear")) == "linear"
    last = choice(config, "final_sigmas_type", "zero", ("zero", "sigma_min"))
    return Euler(
        *common,
        noise_scales=asked[0] if asked else "timesteps",
        log_linear=not linear,
        sigma_min=_sigma(config, "sigma_min"),
        sigma_max=_sigma(config, "sigma_max"),
        ends_at_zero=last == "zero",
    )


_SCALES: Mapping[NoiseScales, str] = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


def _sigma(config: Mapping[str, Any], field: str) -> float | None:
    """A noise scale, or null."""
    value = config.get(field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1e9):
        raise unsupported(field, value, "use null or a number above 0")
    return None if value is None else float(value)


def _make_ancestral(config: Mapping[str, Any], *common: Any) -> Euler:
    return Euler(*common, ancestral=True)


SAMPLERS: Mapping[str, Callable[..., Ddim | Pndm | Euler]] = {
    "DDIMScheduler": _make_ddim,
    "PNDMScheduler": _make_pndm,
    "EulerDiscreteScheduler": _make_euler,
    "EulerAncestralDiscreteScheduler": _make_ancestral,
}
"""By diffusers' class name: config, noise schedule, steps and spacing to sampler."""

UNDRAWN = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LMSDiscreteScheduler",
    "DDPMScheduler",
)
"""Classes whose noise schedule is read like the others', though nothing here draws with them.
Their files have the fields and defaults of `NoiseSchedule`; Heun's and LCM's have other defaults.
"""


def _alphas(schedule: NoiseSchedule, timesteps: np.ndarray, last_is_one: bool) -> np.ndarray:
    """`a_t`; a step that ends before timestep 0 ends at 1 or at `a_0`."""
    end = 1.0 if last_is_one else schedule.alphas_cumprod[0]
    return np.where(timesteps >= 0, schedule.alphas_cumprod[np.maximum(timesteps, 0)], end)


def _float32(values: np.ndarray) -> Array:
    return jnp.asarray(values, jnp.float32)
