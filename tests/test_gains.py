"""What a night may claim: seeds, hours and the luck of the chosen."""

import gzip
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest

from autoresearch.stats import gain
from autoresearch.stats.gain import MeasuredExperiment

NIGHT = Path(__file__).parent.parent / "docs/nights/2026-11-24-cpu/ledger.sql.gz"
HOUR = 3600.0


@dataclass(frozen=True)
class Scored:
    number: int
    blob: str
    parent: str
    values: tuple
    decision: str = "discard"
    why: str = ""


def told(number, blob, parent, runs, hours=()):
    """An experiment by its (seed, score) pairs."""
    row = Scored(number, blob, parent, tuple(value for _, value in runs))
    return MeasuredExperiment(row, tuple(runs), tuple(HOUR * hour for hour in hours))


def claim(*rows, lower=True):
    return gain.estimate_champion_gain(rows, "best", "first", lower_is_better=lower)


FIRST = told(0, "first", "", [(1, 1.01), (2, 0.99), (3, 1.0)], (0.1, 0.2, 0.3))


def champion(*runs, hours=()):
    return told(1, "best", "first", runs, hours)


def test_a_champion_of_one_run_claims_less_than_its_score_and_says_how_unsure_it_is():
    found = claim(FIRST, champion((1, 0.96)))

    assert found.runs == 1
    assert 0 < found.gain < 0.05
    assert found.low < found.gain < found.high


def test_further_runs_make_a_claim_surer():
    one = claim(FIRST, champion((1, 0.91)))
    more = claim(FIRST, champion((1, 0.91), (2, 0.89), (3, 0.9)))

    assert more.high - more.low < (one.high - one.low) * 0.8
    assert more.gain == pytest.approx(0.1, abs=0.005)


def test_luck_that_both_owe_to_a_seed_cancels_and_the_rest_is_in_the_interval():
    lucky = [(1, 1.3), (2, 0.7), (3, 1.0)]
    first = told(0, "first", "", lucky)
    alike = told(2, "other", "first", [(1, 1.301), (2, 0.699)])
    paired = champion(*((seed, value - 0.8) for seed, value in lucky))

    found = claim(first, alike, paired)

    assert found.gain == pytest.approx(0.8, abs=0.03)
    apart = champion(*((seed + 3, value - 0.8) for seed, value in lucky))
    other = claim(first, alike, apart)
    assert found.high - found.low < other.high - other.low


def test_what_a_seed_gave_the_baseline_is_not_taken_off_a_champion_in_full():
    """The recorded night's claim was an eighth too high for it."""
    first = told(0, "first", "", [(1, 1.3), (2, 0.85), (3, 0.85)])
    alike = told(2, "other", "first", [(1, 1.3), (2, 0.86)])
    found = claim(first, alike, champion((1, 0.1)))

    plain = 1.0 - 0.1
    in_full = 1.0 - (0.1 - 0.3)
    assert plain < found.gain < in_full


def test_a_baseline_run_late_tells_how_far_the_machine_moved():
    late = champion((1, 1.0), (2, 1.01), (3, 0.99), hours=(9.8, 9.9, 10))
    moved = told(
        0,
        "first",
        "",
        [*FIRST.seed_scores, (4, 1.04), (5, 1.05)],
        (0.1, 0.2, 0.3, 9.7, 9.8),
    )

    assert claim(moved, late).gain > claim(FIRST, late).gain + 0.01


def test_where_nobody_ran_late_the_interval_holds_what_machines_do():
    runs = ((1, 0.91), (2, 0.89), (3, 0.9))
    early = claim(
        FIRST,
        champion(*runs, hours=(0.4, 0.5, 0.6)),
        told(2, "x", "first", [(1, 1.0)], (10,)),
    )
    late = claim(FIRST, champion(*runs, hours=(9.8, 9.9, 10)))

    assert late.high - late.low > 1.2 * (early.high - early.low)


def test_the_other_direction_is_the_mirror():
    up = told(0, "first", "", [(s, -v) for s, v in FIRST.seed_scores], (0.1, 0.2, 0.3))

    low, high = (
        claim(FIRST, champion((1, 0.9))),
        claim(up, champion((1, -0.9)), lower=False),
    )

    assert high.gain == pytest.approx(low.gain)
    assert high.low == pytest.approx(low.low)


def test_nothing_is_claimed_where_nothing_can_be():
    still = told(0, "first", "", [(1, 1.0), (2, 1.0), (3, 1.0)])
    once = told(0, "first", "", [(1, 1.0)])

    assert claim(still, champion((1, 0.9))) is None  # no noise: the difference is exact
    assert claim(once, champion((1, 0.9))) is None  # nothing ran twice
    assert claim(FIRST) is None  # a champion that was never measured
    same = gain.estimate_champion_gain([FIRST], "first", "first", lower_is_better=True)
    assert (same.gain, same.low, same.high) == (0, 0, 0)


def test_scores_that_are_no_numbers_have_no_say():
    broken = told(5, "other", "first", [(1, float("nan")), (2, 1.0)])

    assert claim(FIRST, champion((1, 0.9)), broken) == claim(FIRST, champion((1, 0.9)))
    assert claim(FIRST, champion((1, float("nan")))) is None


def test_a_second_look_under_another_number_counts():
    again = told(7, "best", "first", [(2, 0.9), (3, 0.9)])

    assert claim(FIRST, champion((1, 0.9)), again).runs == 3


def wanted(*rows):
    return gain.plan_gain_runs(rows, "best", "first", lower_is_better=True)


def test_the_last_runs_go_where_the_claim_is_least_sure():
    hours = (0.1, 0.2, 0.3)
    early = told(0, "first", "", FIRST.seed_scores, hours)
    thin = wanted(told(0, "first", "", FIRST.seed_scores), champion((1, 0.95)))
    old = wanted(
        early,
        champion(*((n, 0.95) for n in range(1, 7)), hours=(9, 9.1, 9.2, 9.3, 9.4, 9.5)),
    )

    assert thin[0] == "best"  # one run against three
    assert 1 <= len(thin) <= gain.MAX_GAIN_RUNS
    assert old[0] == "first"  # nobody ran it since the evening


def test_a_claim_that_is_sure_enough_or_empty_wants_nothing():
    assert wanted(FIRST, champion((1, 0.01))) == ()  # a gain of a hundred sd
    assert wanted(FIRST, champion((1, 1.2))) == ()  # no gain
    assert wanted(FIRST) == ()


def test_the_recorded_night_would_have_claimed_what_came_again():
    rows, pairs = recorded_night()
    best, first = rows[-1].row.blob, rows[0].row.blob

    ours = gain.estimate_champion_gain(
        sorted(rows, key=lambda one: one.row.number), best, first, lower_is_better=True
    )

    certificate = fmean(pairs)
    assert ours.low < certificate < ours.high
    assert ours.gain < 0.1433  # what it said that morning


def recorded_night():
    """(the night's experiments, the champion last; gains on fresh seeds)."""
    db = sqlite3.connect(":memory:")
    db.executescript(gzip.decompress(NIGHT.read_bytes()).decode())
    runs, again = {}, {}
    for number, occasion, seed, value, at in db.execute(
        "select experiment, occasion, seed, value, ended_at from run order by id"
    ):
        if occasion == "replicate":
            again.setdefault(seed, {})[number] = value
        elif number <= 64:
            runs.setdefault(number, []).append((seed, value, at))
    rows = []
    for number, made in runs.items():
        blob, parent, decision = db.execute(
            "select blob, parent, decision from experiment where number = ?", (number,)
        ).fetchone()
        row = Scored(number, blob, parent, tuple(v for _, v, _ in made), decision)
        rows.append(
            MeasuredExperiment(
                row, tuple((s, v) for s, v, _ in made), tuple(t for *_, t in made)
            )
        )
    last = max(one.row.number for one in rows if one.row.decision == "keep")
    rows.sort(key=lambda one: one.row.number == last)
    return rows, [pair[0] - pair[last] for pair in again.values()]
