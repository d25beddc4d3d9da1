"""Factors of debias requests: the arithmetic by hand, and searches that must end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.requests import EditRequest, RequestError
from emcid_jax.editing.bank.memories import Memory
from emcid_jax.editing.debias import mixing
from emcid_jax.editing.debias.mixing import Prior, Response, Trial

NURSE = EditRequest(
    "a nurse",
    ("a female nurse", "a male nurse"),
    ("a photo of {}", "{}"),
    task="debias",
    ratios=(0.5, 0.5),
    seed=7,
    image_paths=("f1", "f2", "m1", "m2"),
)
DOG = EditRequest("dog", "cat", ("{}",))


def shares(*weights: float) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


RATIOS = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(lambda w: shares(*w))


def test_parts_ask_for_one_destination_each() -> None:
    assert mixing.parts(DOG) == (DOG,)
    female, male = mixing.parts(NURSE)
    assert (female.source, female.dest, female.task) == ("a nurse", "a female nurse", "update")
    assert (female.image_paths, male.image_paths) == (("f1", "f2"), ("m1", "m2"))
    assert male.templates == NURSE.templates
    assert male.seed == 7
    with pytest.raises(RequestError, match="image_paths: 3 files cannot be shared by 2"):
        EditRequest(
            "a nurse", NURSE.dest, ("{}",), task="debias", ratios=(0.5, 0.5),
            image_paths=("a", "b", "c"),
        )  # fmt: skip


def test_a_mixture_starts_from_the_shared_state() -> None:
    h0, first, second = np.array([1.0, 2.0]), np.array([4.0, 0.0]), np.array([0.0, -8.0])
    memories = [
        Memory(
            *(
                np.array(part, np.float32)
                for part in (h0 + d, d, [d[0]], [1, 2, 3, 4], [0, 0, 0, d[1]])
            )
        )
        for d in (first, second)
    ]
    found = mixing.mixed(memories, (0.25, 0.75))
    np.testing.assert_array_equal(found.delta, [1.0, -6.0])
    np.testing.assert_array_equal(found.z, [2.0, -4.0])
    np.testing.assert_array_equal(found.curve, [1.0])
    np.testing.assert_array_equal(found.start, [1, 2, 3, 4])
    assert found.z.dtype == np.float32
    # Factors that were rounded still leave h0 in the mixture once.
    np.testing.assert_allclose(mixing.mixed(memories, (0.2, 0.6)).z, found.z, rtol=1e-7)


def test_the_stop_rule_of_the_released_code_can_fire_here() -> None:
    # 25 images come no nearer to one half than 13 of 25, and |0.52 - 0.5| > 0.02 in floats.
    assert abs(0.52 - 0.5) > 0.02
    assert mixing.is_near((13, 12), (0.5, 0.5), 0.02)
    assert not mixing.is_near((14, 11), (0.5, 0.5), 0.02)


@pytest.mark.parametrize(
    ("ratios", "images", "least"),
    [
        ((0.5, 0.5), 24, 0.0),
        ((0.5, 0.5), 25, 0.02),
        ((0.2, 0.3, 0.5), 7, 0.5 - 3 / 7),  # 1.4, 2.1, 3.5: counts 2, 2, 3 or 1, 2, 4
        ((1.0, 0.0), 3, 0.0),
    ],
)
def test_resolution(ratios: tuple[float, ...], images: int, least: float) -> None:
    brute = min(
        mixing.deviation(counts, ratios)
        for counts in np.ndindex(*(images + 1,) * len(ratios))
        if sum(counts) == images
    )
    assert mixing.resolution(ratios, images) == pytest.approx(brute, abs=1e-12)
    if len(ratios) == 2:
        assert brute == pytest.approx(least, abs=1e-12)


def test_first_candidates_begin_with_the_asked_ratios() -> None:
    assert mixing.first_candidates((0.5, 0.5), 1) == ((0.5, 0.5),)
    assert mixing.first_candidates((0.5, 0.5), 3) == ((0.5, 0.5), (0.75, 0.25), (0.25, 0.75))
    found = mixing.first_candidates((0.2, 0.8), 5)
    assert found[0] == (0.2, 0.8)
    assert found[1] == pytest.approx((0.2 + 0.8 / 3, 0.8 - 0.8 / 3), abs=1e-5)
    assert found[4] == pytest.approx((0.2 - 0.2 * 2 / 3, 0.8 + 0.2 * 2 / 3), abs=1e-5)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4))
def test_projection_is_the_nearest_point_of_the_simplex(point: list[float]) -> None:
    found = mixing.project(np.array(point))
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    others = np.random.default_rng(0).dirichlet(np.ones(len(point)), 300)
    nearest = np.linalg.norm(others - point, axis=1).min()
    assert np.linalg.norm(found - point) <= nearest + 1e-9


@given(RATIOS)
def test_an_aim_undoes_the_response(ratios: tuple[float, ...]) -> None:
    inside = np.array(shares(*(5 + 10 * r for r in ratios)))
    slope = 12.0
    logits = slope * inside
    offsets = np.log(ratios) - logits  # P(value) is then the asked ratio at `inside`.
    found = mixing.aim(Response(slope, offsets), ratios, images=10_000)
    np.testing.assert_allclose(found, inside, atol=2e-6)


def test_a_fit_is_the_maximum_of_the_posterior() -> None:
    trials = [Trial((0.5, 0.5), (3, 5)), Trial((0.75, 0.25), (7, 1)), Trial((0.2, 0.8), (1, 7))]
    prior = Prior(Response(8.0, np.array([0.5, -0.5])), slope_spread=0.7, offset_spread=2.0)

    def log_posterior(slope: float, offsets: np.ndarray) -> float:
        value = -0.5 * ((math.log(slope) - math.log(8.0)) / 0.7) ** 2
        value -= 0.5 * float((((offsets - [0.5, -0.5]) / 2.0) ** 2).sum())
        for trial in trials:
            logits = slope * np.array(trial.factors) + offsets
            value += float((np.array(trial.counts) * (logits - np.logaddexp(*logits))).sum())
        return value

    found = mixing.fit(trials, prior)
    best = log_posterior(found.slope, found.offsets)
    for slope in np.exp(math.log(found.slope) + np.array([-0.01, 0, 0.01])):
        for shift in np.array([[0, 0], [0.01, 0], [-0.01, 0], [0, 0.01], [0, -0.01]]):
            assert log_posterior(slope, found.offsets + shift) <= best + 1e-7


@settings(max_examples=25)
@given(RATIOS, st.floats(3, 40), st.integers(0, 5))
def test_a_search_ends_near_on_a_response_it_can_reach(
    ratios: tuple[float, ...], slope: float, seed: int
) -> None:
    images, tolerance, rng = 200, 0.12, np.random.default_rng(seed)
    middle = np.array(shares(*rng.uniform(1, 3, len(ratios))))
    offsets = np.log(ratios) - slope * middle

    def drawn(factors: tuple[float, ...]) -> Trial:
        p = np.exp(slope * np.array(factors) + offsets)
        return Trial(factors, tuple(rng.multinomial(images, p / p.sum()).tolist()))

    trials = [drawn(factors) for factors in mixing.first_candidates(ratios, 3)]
    for _ in range(8):
        response = mixing.fit(trials, mixing.broad_prior(len(ratios)))
        trials.append(drawn(mixing.aim(response, ratios, images)))
        if mixing.is_near(trials[-1].counts, ratios, tolerance):
            break
    assert mixing.is_near(trials[-1].counts, ratios, tolerance)


def test_counts_of_equal_factors_are_taken_together() -> None:
    trials = [Trial((0.5, 0.5), (1, 3)), Trial((0.6, 0.4), (3, 1)), Trial((0.5, 0.5), (4, 0))]
    assert mixing.pooled(trials, (0.5, 0.5)) == (5, 3)
    assert mixing.pooled(trials, (1.0, 0.0)) == ()
