"""Every sampler on every scheduler file: diffusers' pipeline from the same noise, or a refusal."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pipeline_oracle
from emcid_jax.diffusion.samplers import SAMPLERS, make_sampler
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.sample import SCHEDULERS

DDIM, PNDM, EULER, ANCESTRAL = SAMPLERS
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
GIVEN = np.linspace(0.0005, 0.02, 1000).tolist()
FIELDS: Mapping[str, list[dict[str, Any]]] = {
    "noise": [
        SD,
        {},
        SD | {"num_train_timesteps": 400},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": GIVEN},
        SD | {"trained_betas": None},
    ],
    "prediction": [
        {},
        *({"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")),
    ],
    "spacing": [
        {},
        *({"timestep_spacing": kind} for kind in ("leading", "linspace", "trailing")),
    ],
    "offset": [{}, *({"steps_offset": value} for value in (0, 1, 7, None))],
    "clip": [
        {},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.4},
        {"clip_sample": False},
    ],
    "alpha": [{}, {"set_alpha_to_one": True}, {"set_alpha_to_one": False}],
    "zero snr": [{}, {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": False}],
    "thresholding": [{}, {"thresholding": True}, {"thresholding": False}],
    "runge-kutta": [{"skip_prk_steps": True}, {}, {"skip_prk_steps": False}],
    "scales": [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_karras_sigmas": False, "use_beta_sigmas": False},
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
    ],
    "interpolation": [{}, {"interpolation_type": "linear"}, {"interpolation_type": "log_linear"}],
    "last": [{}, {"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}],
    "ends": [{}, {"sigma_min": 0.1}, {"sigma_max": 10.0}, {"sigma_min": 0.2, "sigma_max": 8.0}],
    "timesteps": [{}, {"timestep_type": "discrete"}, {"timestep_type": "continuous"}],
    "other": [{}, {"solver_order": 2, "algorithm_type": "dpmsolver++", "variance_type": None}],
}
BASE = SD | {"skip_prk_steps": True}
WRITERS = [*SAMPLERS, "", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler"]


class Case(NamedTuple):
    """A folder's scheduler and what is drawn with it."""

    config: dict[str, Any]
    """The file; its `_class_name` is that of the class that wrote it, or missing."""
    index_class: str
    """In `model_index.json`."""
    instead: str
    """`sampling.scheduler`; empty: the folder's own."""
    steps: int


def one_by_one() -> Iterator[Case]:
    """Every value of every field by itself, on every class; every writer and every exchange."""
    for name in SAMPLERS:
        for values in FIELDS.values():
            for value in values:
                cleared = {key: BASE[key] for key in BASE if not any(key in v for v in values)}
                yield Case({"_class_name": name} | cleared | value, name, "", 5)
        for steps in (1, 2, 61):
            for spacing in FIELDS["spacing"]:
                yield Case({"_class_name": name} | BASE | spacing, name, "", steps)
        yield Case({"_class_name": name, "timestep_spacing": "leading"} | BASE, name, "", 1000)
        for writer in WRITERS:
            yield Case(written_by(writer, BASE | {"clip_sample": True}), name, "", 5)
        for instead in SCHEDULERS:
            yield Case({"_class_name": name} | SD, name, instead, 5)


def combined(count: int) -> Iterator[Case]:
    """Draws from the product of all fields, classes, writers, exchanges and step counts."""
    rng = random.Random(0)
    for _ in range(count):
        config = written_by(rng.choice(WRITERS), {})
        for values in FIELDS.values():  # half the time the first, or nearly all would be refused
            config |= values[0] if rng.random() < 0.5 else rng.choice(values)
        instead = "" if rng.random() < 0.6 else rng.choice([*SCHEDULERS])
        steps = rng.choice((1, 2, 3, 4, 5, 9, 20, 61))
        yield Case(config, rng.choice([*SAMPLERS]), instead, steps)


def written_by(writer: str, config: dict[str, Any]) -> dict[str, Any]:
    return config | ({"_class_name": writer} if writer else {})


def effective(case: Case) -> dict[str, Any]:
    """The file as `load_pipeline` and `sampling.scheduler` change it."""
    return case.config | {"_class_name": case.index_class} | dict(SCHEDULERS.get(case.instead, {}))


def read(case: Case) -> None:
    """The folder is opened, then the sampler is made: raises what a user sees."""
    make_sampler(effective(case._replace(instead="")), 1)
    make_sampler(effective(case), case.steps)


def must_refuse(case: Case) -> bool:
    """Whether opening the folder or drawing needs what is documented as not supported."""
    own = case._replace(instead="", steps=1)
    return is_unsupported(effective(own), 1) or is_unsupported(effective(case), case.steps)


def is_unsupported(config: Mapping[str, Any], steps: int) -> bool:
    """Told by the fields alone."""
    name, total = config["_class_name"], config.get("num_train_timesteps", 1000)
    scales = [config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta")]
    spacing = config.get("timestep_spacing") or ("linspace" if "Euler" in name else "leading")
    velocity = config.get("prediction_type") == "v_prediction"
    return (
        config.get("prediction_type") == "sample"
        or bool(config.get("rescale_betas_zero_snr") and (not velocity or name == PNDM))
        or (name == DDIM and config.get("thresholding") is True)
        or (name == PNDM and not config.get("skip_prk_steps"))
        or (name == EULER and (scales.count(True) > 1 or "continuous" in config.values()))
        or (spacing == "leading" and steps == total)
        # diffusers makes a call too many at timestep -1
        or (spacing == "trailing" and len(np.arange(total, 0, -total / steps)) != steps)
    )


def ours(config: dict[str, Any], steps: int) -> list[np.ndarray]:
    """Latents after every call; not compiled, for compiling takes longer than all else."""
    sampler = make_sampler(config, steps)
    noise, fresh = pipeline_oracle.draws(steps)
    rows = jax.tree.map(np.asarray, sampler.rows())
    state, found = sampler.start(jnp.asarray(noise)), []
    for call in range(len(rows.timestep)):
        row = jax.tree.map(lambda column, call=call: column[call], rows)
        output = pipeline_oracle.denoise(sampler.model_input(state, row), row.timestep)
        extra = jnp.asarray(fresh[call]) if sampler.fresh else None
        state = sampler.advance(state, output, row, extra)
        found.append(np.asarray(sampler.result(state)))
    return found


def compare(case: Case, folder: Path) -> float | str:
    """The lowest PSNR of the trajectory in decibels, or the field that is refused."""
    if must_refuse(case):
        with pytest.raises(
            UserError, match=r"^scheduler_config.json: .* is not supported; "
        ) as said:
            read(case)
        return str(said.value).split(": ")[1].split("=")[0]
    found = ours(effective(case), case.steps)
    instead = SCHEDULERS[case.instead]["_class_name"] if case.instead else ""
    pipe = pipeline_oracle.load(folder, case.config, case.index_class, instead)
    try:
        theirs = pipeline_oracle.trajectory(pipe, case.steps)
    except IndexError:
        # A sigma_max above the schedule: its first timesteps are equal, and it skips one of them.
        assert effective(case).get("sigma_max")
        return "diffusers fails"
    assert np.isfinite(found).all()
    if not np.isfinite(theirs).all():
        # In float32 its ancestral step takes the root of a number below 0 where sigma falls far.
        assert effective(case)["_class_name"] == ANCESTRAL
        return "diffusers draws NaN"
    return min(psnr(a, b) for a, b in zip(found, theirs, strict=True))


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Decibels; the peak is the largest value of theirs."""
    error = np.mean(np.square(ours.astype(np.float64) - theirs))
    return float(10 * np.log10(np.square(theirs.astype(np.float64)).max() / max(error, 1e-30)))


def check(cases: Iterator[Case], folder: Path) -> collections.Counter[str]:
    """All cases; how many were drawn, and what was refused how often."""
    counts: collections.Counter[str] = collections.Counter()
    worst = np.inf
    for case in cases:
        found = compare(case, folder)
        if isinstance(found, float):
            assert found >= 40, case
            worst, found = min(worst, found), "drawn"
        counts[found] += 1
    print(f"{dict(counts)}; lowest PSNR {worst:.1f} dB")
    return counts


def test_every_field_on_every_class(tmp_path: Path) -> None:
    counts = check(one_by_one(), tmp_path)
    assert counts["drawn"] > 200


@pytest.mark.slow
def test_combined_fields(tmp_path: Path) -> None:
    counts = check(combined(4_000), tmp_path)
    assert counts["drawn"] > 1_000
