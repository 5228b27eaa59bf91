"""Noise: what repeating a run says about a score."""

import math
import random
from statistics import NormalDist, fmean

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


# Quantiles of Student's t and chi-square as SciPy 1.17 gives them.
T_PROBABILITIES = (0.9, 0.95, 0.975, 0.995, 0.9995)
T_TABLE = {
    1: (3.077683537, 6.313751515, 12.706204736, 63.656741163, 636.619248769),
    2: (1.885618083, 2.919985580, 4.302652730, 9.924843201, 31.599054576),
    2.5: (1.730250929, 2.558218614, 3.574654842, 7.163728139, 18.277893528),
    3: (1.637744354, 2.353363435, 3.182446305, 5.840909310, 12.923978637),
    4: (1.533206274, 2.131846786, 2.776445105, 4.604094871, 8.610301581),
    10: (1.372183641, 1.812461123, 2.228138852, 3.169272673, 4.586893859),
    30: (1.310415025, 1.697260887, 2.042272456, 2.749995654, 3.645958635),
    120: (1.288646234, 1.657650899, 1.979930405, 2.617421145, 3.373453769),
}
CHI_SQUARE_PROBABILITIES = (0.025, 0.05, 0.5, 0.95, 0.975, 0.995)
CHI_SQUARE_TABLE = {
    1: (0.000982069, 0.003932140, 0.454936423, 3.841458821, 5.023886187, 7.879438577),
    2: (0.050635616, 0.102586589, 1.386294361, 5.991464547, 7.377758908, 10.596634733),
    3: (0.215795283, 0.351846318, 2.365973884, 7.814727903, 9.348403604, 12.838156467),
    4.5: (
        0.649384599,
        0.920142651,
        3.853753768,
        10.288195668,
        11.998539403,
        15.818345669,
    ),
    10: (
        3.246972780,
        3.940299136,
        9.341817766,
        18.307038053,
        20.483177351,
        25.188179572,
    ),
    30: (
        16.790772266,
        18.492660982,
        29.336031517,
        43.772971826,
        46.979242244,
        53.671961930,
    ),
    100: (
        74.221927475,
        77.929465165,
        99.334129236,
        124.342113404,
        129.561197186,
        140.169489442,
    ),
}


@pytest.mark.parametrize("degrees", T_TABLE)
def test_t_quantiles_are_those_of_the_table(degrees):
    deviates = [NormalDist().inv_cdf(p) for p in T_PROBABILITIES]
    found = [quantiles.t_quantile_from_normal(z, degrees) for z in deviates]
    back = [quantiles.normal_quantile_from_t(t, degrees) for t in T_TABLE[degrees]]

    assert found == pytest.approx(T_TABLE[degrees], rel=1e-6)
    assert back == pytest.approx(deviates, abs=1e-6)


@pytest.mark.parametrize("degrees", CHI_SQUARE_TABLE)
def test_chi_square_quantiles_are_those_of_the_table(degrees):
    deviates = [NormalDist().inv_cdf(p) for p in CHI_SQUARE_PROBABILITIES]
    found = [quantiles.chi_square_quantile(degrees, z) for z in deviates]

    assert found == pytest.approx(CHI_SQUARE_TABLE[degrees], rel=1e-6)


@pytest.mark.parametrize(
    ("t", "degrees", "z"),
    [
        *((2, 1, 1.046853317), (3, 2, 1.667243651), (5, 4, 2.674215331)),
        *((-2.5, 10, -2.151372066), (40, 3, 4.142322249)),
    ],
)
def test_a_t_value_has_the_normal_deviate_with_its_tail(t, degrees, z):
    assert quantiles.normal_quantile_from_t(t, degrees) == pytest.approx(z, abs=1e-6)


def test_with_infinite_degrees_t_is_normal():
    assert quantiles.normal_quantile_from_t(1.5, math.inf) == 1.5
    assert quantiles.t_quantile_from_normal(1.5, math.inf) == 1.5


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
