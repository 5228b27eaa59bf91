"""The luck of seeds: taken out where it is shared, left alone where it is not."""

import math
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.stats import noise, seed_effects


def made(rng, count, runs, of_seeds, rest):
    """Experiments of several runs each: level + seed + rest."""
    luck = {seed: rng.gauss(0, of_seeds) for seed in range(1, 40)}
    told = []
    for _ in range(count):
        level = rng.gauss(0, 1)
        told.append(
            tuple(
                (seed, level + luck[seed] + rng.gauss(0, rest))
                for seed in range(1, rng.choice(runs) + 1)
            )
        )
    return told, luck


def test_shared_luck_is_found_and_taken_out():
    told, truth = made(random.Random(1), 12, (3,), of_seeds=1.0, rest=0.1)
    found = seed_effects.estimate_seed_effects(told)

    centre = fmean(truth[seed] for seed in (1, 2, 3))
    for seed in (1, 2, 3):
        assert found.by_seed[seed] == pytest.approx(truth[seed] - centre, abs=0.15)
    assert found.noise.sd == pytest.approx(0.1, rel=0.6)
    assert (
        found.noise.sd
        < noise.estimate_pooled_noise([[v for _, v in r] for r in told]).sd / 3
    )


def test_where_seeds_explain_nothing_scores_stay_nearly_as_they_are():
    told, _ = made(random.Random(2), 30, (2, 3, 4), of_seeds=0.0, rest=1.0)
    found = seed_effects.estimate_seed_effects(told)

    assert all(abs(luck) < 0.35 for luck in found.by_seed.values())
    plain = noise.estimate_pooled_noise([[v for _, v in runs] for runs in told])
    assert found.noise.sd == pytest.approx(plain.sd, rel=0.1)


def test_a_baseline_alone_leaves_half_of_the_noise():
    runs = ((1, 2.05), (2, 2.02), (3, 2.03))
    found = seed_effects.estimate_seed_effects([runs])
    plain = stdev(value for _, value in runs)

    assert 0.5 * plain < found.noise.sd < plain
    assert found.noise.degrees == 1
    assert found.by_seed[1] > 0 > found.by_seed[2]


def test_a_repeatable_lab_without_seeds_has_no_noise():
    found = seed_effects.estimate_seed_effects([((1, 2.0), (2, 2.0)), ((1, 1.5),)])

    assert found.noise.sd == 0
    assert found.adjust_scores(((1, 1.5), (9, 1.4))) == (1.5, 1.4)


def test_nothing_that_ran_once_teaches_anything():
    assert seed_effects.estimate_seed_effects([((1, 2.0),), ((1, 5.0),)]).noise is None
    both = seed_effects.estimate_seed_effects([((1, 2.0), (2, 2.2))])
    assert (
        seed_effects.estimate_seed_effects([((1, 2.0), (2, 2.2)), ((1, 99.0),)]) == both
    )


def test_experiments_on_other_seeds_are_islands_of_their_own():
    one, other = ((1, 0.0), (2, 1.0)), ((3, 0.0), (4, 1.0))
    assert seed_effects.count_effect_degrees([one]) == 1
    assert seed_effects.count_effect_degrees([one, other]) == 2
    assert seed_effects.count_effect_degrees([one, ((2, 0.0), (3, 1.0)), other]) == 3
    assert seed_effects.count_effect_degrees([one, one, one]) == 1


def test_pairs_on_shared_seeds_are_told_apart_better_than_means():
    """What it is for: a candidate's one run against a champion's three."""
    rng, plain, fair = random.Random(3), [], []
    for _ in range(300):
        told, luck = made(rng, 6, (3,), of_seeds=1.0, rest=0.2)
        champion = told[0]
        level = champion[0][1] - luck[1]  # with its own rest of seed 1 in it
        once = ((1, level + luck[1] + rng.gauss(0, 0.2)),)
        found = seed_effects.estimate_seed_effects(told)
        plain.append(once[0][1] - fmean(v for _, v in champion))
        fair.append(found.adjust_scores(once)[0] - fmean(found.adjust_scores(champion)))
    assert stdev(fair) < stdev(plain) / 2


def test_the_noise_it_tells_is_the_noise_there_is():
    """Of a candidate's one run against a champion's three, over many nights."""
    rng, told_sd, off = random.Random(4), [], []
    for _ in range(400):
        told, luck = made(rng, 9, (2, 3), of_seeds=0.7, rest=0.4)
        told[0] = tuple((s, luck[s] + rng.gauss(0, 0.4)) for s in (1, 2, 3))
        found = seed_effects.estimate_seed_effects(told)
        once = ((1, luck[1] + rng.gauss(0, 0.4)),)
        off.append(found.adjust_scores(once)[0] - fmean(found.adjust_scores(told[0])))
        told_sd.append(found.noise.sd * math.sqrt(1 + 1 / 3))
    assert stdev(off) == pytest.approx(fmean(told_sd), rel=0.2)


numbers = st.floats(-1e6, 1e6)
experiments = st.lists(
    st.lists(st.tuples(st.integers(1, 5), numbers), max_size=5).map(tuple), max_size=8
)


@given(experiments)
def test_whatever_was_measured_the_answer_is_finite(told):
    found = seed_effects.estimate_seed_effects(told)

    assert all(math.isfinite(luck) for luck in found.by_seed.values())
    assert found.noise is None or math.isfinite(found.noise.sd)


@given(experiments, st.floats(-100, 100))
def test_adding_a_constant_to_every_score_changes_no_luck(told, more):
    moved = [tuple((seed, value + more) for seed, value in runs) for runs in told]
    one, other = (
        seed_effects.estimate_seed_effects(told),
        seed_effects.estimate_seed_effects(moved),
    )

    for seed, luck in one.by_seed.items():
        assert other.by_seed.get(seed, 0.0) == pytest.approx(luck, abs=1e-3)
