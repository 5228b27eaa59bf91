"""Learning curves: which runs end early, and how it is known what that costs."""

import itertools
import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.stats import early_stopping
from autoresearch.stats.early_stopping import FinishedRun, decide_pruning
from benchmarks import simulation


def curve(end: float, until: float = 1.0):
    """Losses on the way to `end`."""
    steps = [n / 40 for n in range(1, int(40 * until) + 1)]
    return tuple((at, end + 3 * (1 - at)) for at in steps)


def night(count=20, seed=1, spread=0.05):
    """Finished runs whose losses foretell their scores, with some scatter."""
    rng = random.Random(seed)
    ends = [rng.uniform(1.0, 2.0) for _ in range(count)]
    return [FinishedRun(curve(e), e + rng.gauss(0, spread), False, 1.5) for e in ends]


def asked(so_far, past, bar, **more):
    options = {"schedule": False, "lower_is_better": True, **more}
    parent = options.pop("parent", 1.5 if options["lower_is_better"] else -1.5)
    return decide_pruning(so_far, past, bar, parent, **options)


def test_a_run_that_is_far_behind_ends_early_and_the_reason_says_why():
    found = asked(curve(2.0, 0.3), night(), 1.0)

    assert found.progress == 0.3
    assert found.predicted == pytest.approx(2.0, abs=0.1)
    assert "ended early at 30%" in found.reason


def test_a_run_that_may_still_win_goes_on():
    assert asked(curve(1.05, 0.3), night(), 1.0) is None
    assert asked(curve(0.5, 0.3), night(), 1.0) is None


def test_it_is_off_until_there_is_enough_history():
    assert (
        asked(curve(2.0, 0.3), night(early_stopping.MIN_FINISHED_RUNS - 1), 1.0) is None
    )
    assert asked(curve(2.0, 0.3), [], 1.0) is None


def test_a_change_of_the_schedule_is_never_ended_and_never_taught_from():
    changed = [FinishedRun(f.curve, f.score, True, 1.5) for f in night()]

    assert asked(curve(2.0, 0.3), night(), 1.0, schedule=True) is None
    assert asked(curve(2.0, 0.3), changed, 1.0) is None


def test_what_once_recovered_is_not_called_hopeless_again():
    recovered = FinishedRun(curve(2.0), 1.0, False, 1.5)

    assert asked(curve(1.9, 0.3), night(), 1.0) is not None
    assert asked(curve(1.9, 0.3), [*night(), recovered], 1.0) is None


def test_a_metric_that_should_rise_is_judged_the_other_way():
    past = [FinishedRun(f.curve, -f.score, False, -1.5) for f in night()]

    assert asked(curve(2.0, 0.3), past, -1.0, lower_is_better=False) is not None
    assert asked(curve(1.05, 0.3), past, -1.0, lower_is_better=False) is None


def test_a_loss_that_foretells_nothing_ends_nothing():
    rng = random.Random(2)
    past = [FinishedRun(f.curve, rng.gauss(1.5, 1), False, 1.5) for f in night(40)]

    assert asked(curve(2.0, 0.3), past, 1.0) is None


def test_a_better_champion_is_no_reason_to_end_its_children():
    """The recorded night ended all twelve that it met: losses told it nothing."""
    rng = random.Random(3)
    past = []
    for step in range(40):
        parent = 2.0 - 0.1 * (step // 10)
        noisy = curve(rng.uniform(1.0, 2.0))
        past.append(FinishedRun(noisy, parent + rng.gauss(0, 0.01), False, parent))

    assert asked(curve(1.5, 0.3), past, 1.5, parent=1.5) is None


def test_a_run_that_falls_far_behind_its_parent_is_ended_whoever_reigns():
    rng = random.Random(4)
    past = []
    for step in range(40):
        parent = 2.0 - 0.1 * (step // 10)
        end = parent + rng.uniform(-0.05, 0.5)
        past.append(FinishedRun(curve(end), end + rng.gauss(0, 0.01), False, parent))

    assert asked(curve(2.1, 0.3), past, 1.6, parent=1.6) is not None
    assert asked(curve(1.61, 0.3), past, 1.6, parent=1.6) is None


def test_a_run_whose_parent_was_never_measured_goes_on():
    assert asked(curve(2.0, 0.3), night(), 1.0, parent=None) is None


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), max_size=50
    )
)
def test_whatever_train_py_reports_is_a_curve_or_left_out(points):
    tidied = early_stopping.normalize_curve(points)

    assert all(math.isfinite(loss) and 0 <= at <= 1 for at, loss in tidied)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(tidied))
    asked(tidied, night(), 1.0)


def test_a_flood_of_reports_is_thinned_out():
    points = [(n / 100_000, 1.0) for n in range(100_000)]

    assert (
        len(early_stopping.normalize_curve(points)) <= early_stopping.MAX_CURVE_POINTS
    )


@pytest.mark.parametrize(
    ("old", "new", "touched"),
    [
        ("LR = 0.1", "LR = 0.2", True),
        ("MATRIX_LR = 0.1", "MATRIX_LR = 0.2", True),
        ("WARMDOWN = 0.4", "WARMDOWN = 0.5", True),
        ("x = f(run.progress)", "x = g(run.progress)", True),
        ("DEPTH = 4\nLR = 1", "DEPTH = 6\nLR = 1", False),
        ("HEADS = 2", "HEADS = 4", False),
    ],
)
def test_a_schedule_is_known_by_its_words(old, new, touched):
    assert early_stopping.touches_schedule(old, new) is touched


def test_a_tenth_runs_on_and_always_the_same_tenth():
    drawn = [early_stopping.is_exempt(7, number) for number in range(4000)]

    assert fmean(drawn) == pytest.approx(early_stopping.EXEMPT_SHARE, abs=0.015)
    assert drawn == [early_stopping.is_exempt(7, number) for number in range(4000)]
    assert drawn != [early_stopping.is_exempt(8, number) for number in range(4000)]


def test_the_rate_of_false_kills_comes_with_an_interval():
    assert early_stopping.estimate_false_prunes([], 5) is None
    told = early_stopping.estimate_false_prunes([False] * 19 + [True], 180)

    assert told.share == 0.05
    assert told.low < 0.05 < told.high


def test_the_spared_tenth_estimates_the_truth_without_bias():
    """With a rule so bad that there is something to estimate."""
    made = simulation.CurveModel(hidden=1.0, schedule=0.8)
    effects = simulation.spike_and_slab_sampler(0.3, 2.0, 0.4, 3.0)
    nights = [
        simulation.simulate_pruning(effects, made, seed, 60) for seed in range(20)
    ]
    truth = sum(n.false for n in nights) / max(1, sum(n.killed for n in nights))
    spared = [won for n in nights for won in n.spared_won]

    told = early_stopping.estimate_false_prunes(spared, sum(n.killed for n in nights))

    assert told is None or told.low - 0.02 <= truth <= told.high + 0.02


def test_ending_runs_early_saves_time_and_seldom_errs():
    effects = simulation.spike_and_slab_sampler(0.15, 1.0, 0.55, 6.0)
    nights = [
        simulation.simulate_pruning(effects, simulation.CurveModel(), n)
        for n in range(12)
    ]

    assert fmean(n.saved for n in nights) > 0.05
    assert sum(n.false for n in nights) <= 0.05 * sum(n.killed for n in nights)
