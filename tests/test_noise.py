"""Noise: what repeating a run says about a score."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch import experiment
from autoresearch.stats import noise, quantiles


def repeated(seed, candidates, runs, sd=0.5):
    """Scores of candidates that differ by far more than the noise."""
    rng = random.Random(seed)
    levels = [rng.uniform(-100, 100) for _ in range(candidates)]
    return [[rng.gauss(level, sd) for _ in range(runs)] for level in levels]


def test_one_run_of_everything_says_nothing():
    assert noise.estimate_pooled_noise([]) is None
    assert noise.estimate_pooled_noise([(1.0,), (2.0,), (5.0,)]) is None


def test_only_runs_of_the_same_candidate_are_compared():
    known = noise.estimate_pooled_noise([(1.0, 3.0), (101.0, 103.0)])

    assert known.sd == pytest.approx(math.sqrt(2))
    assert known.degrees == 2


def test_a_score_that_is_no_number_is_no_evidence():
    assert noise.estimate_pooled_noise(
        [(1.0, math.nan), (2.0, 4.0)]
    ) == noise.estimate_pooled_noise([(2.0, 4.0)])
    assert noise.estimate_pooled_noise([(1.0, math.inf)]) is None


@given(st.floats(-1e6, 1e6))
def test_equal_scores_have_no_noise_not_even_that_of_rounding(value):
    assert noise.estimate_pooled_noise([(value,) * 3]).sd == 0


def test_the_interval_of_the_noise_holds_it_in_ninety_five_of_a_hundred_labs():
    held = 0
    for seed in range(400):
        known = noise.estimate_pooled_noise(repeated(seed, 4, 3))
        held += known.low <= 0.5 <= known.high

    assert 0.92 < held / 400 < 0.98


def test_more_runs_narrow_the_interval():
    few, many = (
        noise.estimate_pooled_noise(repeated(1, count, 3)) for count in (2, 50)
    )

    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(
    ("t", "degrees", "z"),
    [(2.776, 4, 1.960), (2.228, 10, 1.960), (2.042, 30, 1.960), (3.747, 4, 2.326)],
)
def test_students_t_is_made_a_normal_deviate_as_in_the_tables(t, degrees, z):
    assert quantiles.normal_quantile_from_t(t, degrees) == pytest.approx(z, abs=0.03)
    assert quantiles.normal_quantile_from_t(
        -t, degrees
    ) == -quantiles.normal_quantile_from_t(t, degrees)
    assert quantiles.t_quantile_from_normal(z, degrees) == pytest.approx(t, rel=0.03)


def test_a_claim_from_fresh_runs_is_unbiased_and_its_interval_holds():
    rng, held, bias = random.Random(3), 0, []
    for _ in range(500):
        champion = [rng.gauss(1.0, 0.1) for _ in range(4)]
        baseline = [rng.gauss(1.3, 0.1) for _ in range(3)]
        known = noise.estimate_pooled_noise([champion, baseline])
        told = noise.estimate_mean_difference(
            champion, baseline, known, lower_is_better=True
        )
        held += told.low <= 0.3 <= told.high
        bias.append(told.gain - 0.3)

    assert 0.92 < held / 500 < 0.98
    assert abs(fmean(bias)) < 0.01


def test_a_claim_follows_the_direction_of_the_metric():
    known = experiment.Noise(0.1, 10, 0.05, 0.2)

    lower = noise.estimate_mean_difference([1.0], [2.0], known, lower_is_better=True)
    higher = noise.estimate_mean_difference([1.0], [2.0], known, lower_is_better=False)

    assert (lower.gain, higher.gain) == (1.0, -1.0)


def test_heavy_tails_are_found_and_normal_noise_is_not_accused():
    rng = random.Random(5)
    normal = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(40)]
    heavy = [[v * (9 if rng.random() < 0.06 else 1) for v in row] for row in normal]

    assert noise.has_heavy_tails(normal) is False
    assert noise.has_heavy_tails(heavy) is True
    assert noise.has_heavy_tails(normal[:3]) is None


def test_a_drift_over_the_night_is_found():
    rng = random.Random(6)
    hours = [3600.0 * n for n in range(12)]
    warming = [0.3 * n + rng.gauss(0, 0.2) for n in range(12)]
    steady = [rng.gauss(0, 0.2) for _ in range(12)]

    found = noise.detect_drift([warming], [hours])

    assert found.per_hour == pytest.approx(0.3, abs=0.05)
    assert noise.detect_drift([steady], [hours]) is None


def test_a_lucky_first_run_is_no_drift():
    """What was run again because it was lucky looks worse ever after."""
    baseline = ((0.0, 0.1, -0.1), (0.0, 1.0, 2.0))
    rng = random.Random(7)
    lucky = [(-3.0, *(rng.gauss(0, 0.1) for _ in range(4))) for _ in range(8)]
    times = [tuple(10.0 * n + k for k in range(5)) for n in range(1, 9)]

    assert noise.detect_drift([baseline[0], *lucky], [baseline[1], *times]) is None


def test_without_times_there_is_no_drift_to_see():
    assert noise.detect_drift([(1.0, 2.0, 3.0, 4.0, 5.0)], []) is None
    assert noise.detect_drift([], []) is None
