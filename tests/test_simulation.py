"""Simulated nights: the truth is known, and the real policies decide."""

import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from autoresearch.lab.program import POLICIES
from autoresearch.policies.registry import load_policy
from autoresearch.policies.replay import replay_verdicts
from autoresearch.stats import posterior
from benchmarks import simulation
from benchmarks.simulation import (
    SimulatedNoise,
    fixed_effect_sampler,
    simulate_session,
    spike_and_slab_sampler,
)

NOTHING = fixed_effect_sampler(0.0, 0.0)


def policy(name, *, lower=True):
    return load_policy(name, lower_is_better=lower, gain_per_20_added_lines=0.0)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_spends_its_runs_and_no_more(name):
    done = simulate_session(
        policy(name), spike_and_slab_sampler(0.2, 0.001), SimulatedNoise(), 1, runs=60
    )

    assert done.runs == 60
    assert done.experiments + 1 <= len(done.rows) <= 60  # second looks are no ideas


@pytest.mark.parametrize("name", POLICIES)
def test_a_night_in_the_mirror_is_the_same_night(name):
    low, high = (
        simulate_session(
            policy(name, lower=lower),
            spike_and_slab_sampler(0.2, 0.001),
            SimulatedNoise(),
            2,
            runs=80,
            lower_is_better=lower,
        )
        for lower in (True, False)
    )

    assert low.gain == pytest.approx(high.gain)
    assert low.keeps == high.keeps


@pytest.mark.parametrize("name", POLICIES)
def test_without_noise_nothing_false_is_ever_kept(name):
    done = simulate_session(
        policy(name),
        spike_and_slab_sampler(0.2, 1.0),
        SimulatedNoise(sd=0.0),
        3,
        runs=80,
    )

    assert done.false_keeps == 0
    assert done.kept == done.real > 0


def test_the_same_seed_is_the_same_night():
    first, second = (
        simulate_session(policy("noise-aware"), NOTHING, SimulatedNoise(), 4, runs=50)
        for _ in range(2)
    )

    assert [row.values for row in first.rows] == [row.values for row in second.rows]


def test_where_nothing_helps_greedy_is_fooled_and_noise_is_not():
    fooled, aware = (
        [
            simulate_session(
                policy(n), NOTHING, SimulatedNoise(), seed, experiments=100
            )
            for seed in range(25)
        ]
        for n in ("greedy", "noise-aware")
    )

    assert fmean(n.false_keeps for n in fooled) > 3
    assert fmean(n.false_keeps for n in aware) <= 1
    assert fmean(n.runs for n in aware) < 130


def test_gains_of_two_standard_deviations_are_kept():
    nights = [
        simulate_session(
            policy("noise-aware"),
            fixed_effect_sampler(0.15, 0.001),
            SimulatedNoise(),
            n,
            experiments=100,
        )
        for n in range(25)
    ]

    assert sum(n.kept for n in nights) / sum(n.real for n in nights) > 0.8
    assert fmean(n.runs for n in nights) < 190


def test_the_claim_of_a_night_is_not_too_good_to_be_true():
    nights = [
        simulate_session(
            policy("noise-aware"),
            spike_and_slab_sampler(0.15, 0.001),
            SimulatedNoise(),
            n,
            runs=120,
        )
        for n in range(40)
    ]
    claims = [simulation.estimate_simulated_gain(n) for n in nights]
    truth = sum(n.gain for n in nights)

    assert sum(c.gain for c in claims) / truth == pytest.approx(1, abs=0.1)
    held = [c.low <= n.gain <= c.high for c, n in zip(claims, nights, strict=True)]
    assert fmean(held) > 0.85


@pytest.mark.parametrize("shape", ["normal", "heavy", "drift"])
def test_noise_has_the_shape_and_the_size_it_is_said_to_have(shape):
    rng, made = random.Random(1), SimulatedNoise(sd=2.0, shape=shape)
    drawn = [made.draw(rng, 0, rng.gauss(0, 1)) for _ in range(20_000)]
    late = fmean(made.draw(rng, 120, 0.0) for _ in range(2000))

    assert stdev(drawn) == pytest.approx(2.0, rel=0.15)
    assert late == pytest.approx(-4.0 if shape == "drift" else 0.0, abs=0.3)


# -- levels ----------------------------------------------------------------------------


def recorded(*experiments):
    """(blob, parent, *values) -> rows."""
    return tuple(
        simulation.SimulatedExperiment(n, blob, parent, values, "discard", (), 0.0, 0.0)
        for n, (blob, parent, *values) in enumerate(experiments)
        for values in [tuple(values)]
    )


def test_a_lucky_score_is_mostly_believed_to_be_luck():
    rows = recorded(("a", "", 0.0, 0.1, -0.1), ("b", "a", 1.5))

    found = posterior.compute_posteriors(rows, 1.0)

    assert 0 < found["b"].mean < 0.8


def test_a_large_score_is_believed():
    rows = recorded(("a", "", 0.0, 0.1, -0.1), ("b", "a", 30.0))

    assert posterior.compute_posteriors(rows, 1.0)["b"].mean == pytest.approx(
        30.0, abs=1.0
    )


def test_changes_that_do_nothing_measure_their_parent():
    lucky = ("a", "", 2.0)
    others = [(str(n), "a", 0.1 * (-1) ** n) for n in range(20)]

    alone = posterior.compute_posteriors(recorded(lucky), 1.0)["a"]
    found = posterior.compute_posteriors(recorded(lucky, *others), 1.0)["a"]

    assert found.mean < alone.mean
    assert found.variance < alone.variance


def test_losers_cannot_talk_their_parent_down():
    rows = recorded(
        ("a", "", 0.0, 0.1, -0.1), *((str(n), "a", -5.7) for n in range(100))
    )

    assert posterior.compute_posteriors(rows, 1.0)["a"].mean > -1.0


def test_levels_do_not_depend_on_what_was_asked_before():
    rows = recorded(
        ("a", "", 0.0, 0.1), ("b", "a", 1.5), ("c", "b", 1.0), ("d", "a", 3.0)
    )
    grown = [posterior.compute_posteriors(rows[:n], 1.0) for n in range(1, 5)][-1]
    posterior.compute_posteriors(rows[:2], -0.5)

    assert posterior.compute_posteriors(rows, 1.0) == grown


def test_failures_and_numbers_that_are_none_leave_levels_alone():
    rows = recorded(("a", "", 0.0, 0.1), ("b", "a"), ("c", "a", float("nan")))

    assert set(posterior.compute_posteriors(rows, 1.0)) == {"a"}


# -- replay ----------------------------------------------------------------------------


def test_a_recorded_night_decided_by_its_own_policy_is_the_same_night():
    done = simulate_session(
        policy("greedy"),
        spike_and_slab_sampler(0.2, 0.001),
        SimulatedNoise(),
        5,
        runs=60,
    )

    again = replay_verdicts(done.rows, policy("greedy"))

    assert [told.decision for told in again] == [row.decision for row in done.rows]


def test_a_replay_says_which_keeps_do_not_hold_and_what_is_missing():
    """As a ledger begun by greedy after a baseline of three runs."""
    done = simulate_session(
        policy("greedy"), NOTHING, SimulatedNoise(), 11, experiments=100
    )
    base = done.rows[0]
    three = replace(base, values=tuple(1.0 + d for d in (0, 5e-4, -5e-4)))

    again = replay_verdicts((three, *done.rows[1:]), policy("noise-aware"))

    assert done.keeps > 1
    assert [told.number for told in again if told.decision == "keep"] == [0]
    assert any(told.reason.startswith("unresolved") for told in again)


def test_a_failed_experiment_is_no_part_of_a_replay():
    rows = recorded(("a", "", 1.0), ("b", "a"), ("c", "a", 0.5))

    assert [told.number for told in replay_verdicts(rows, policy("greedy"))] == [0, 2]
