"""Policies: what is kept. One contract for every member, then greedy's own rule."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.errors import LabError
from autoresearch.experiment import (
    Candidate,
    Champion,
    CodeSizeChange,
    History,
    Proposal,
    Run,
    Score,
)
from autoresearch.lab.program import POLICIES
from autoresearch.policies import compute_gain
from autoresearch.policies.anneal import create_anneal_policy
from autoresearch.policies.greedy import GreedyPolicy
from autoresearch.policies.islands import create_islands_policy
from autoresearch.policies.noise_aware import NoiseAwarePolicy
from autoresearch.policies.registry import load_policy

CANDIDATE = Candidate(Proposal(1, "an idea", "X = 1\n", "parent", "search"), "blob")
CHAMPION = Champion(0, "blob of the champion", (1.0,))
NONE = CodeSizeChange(0, 0)
THREE = (1.0, 1.001, 0.999)  # a champion's runs; their standard deviation is 0.001
FINITE = st.floats(-1e6, 1e6)


def scores(*values: float) -> tuple[Score, ...]:
    return tuple(
        Score(Run(CANDIDATE, n, 1.0, 0.1, 0.5, Path("w"), (), Path("l")), value, 0, 0.1)
        for n, value in enumerate(values)
    )


def champion(*values: float) -> Champion:
    return Champion(0, "blob of the champion", values)


BEFORE = History(champion(*THREE), (THREE,))
LATER = History(champion(*THREE), (THREE, THREE))  # the noise rests on enough


@dataclass(frozen=True)
class Row:
    """What a policy reads of a ledger's row."""

    number: int
    blob: str
    parent: str
    values: tuple[float, ...]
    decision: str = "discard"


def line(*differences: float) -> tuple[Row, ...]:
    """A baseline of three runs around 1, then each starting from the one before."""
    rows = [Row(0, "0", "", THREE, "keep")]
    for number, difference in enumerate(differences[1:], 1):
        value = fmean(rows[-1].values) + difference
        rows.append(Row(number, str(number), str(number - 1), (value,)))
    return tuple(rows)


# -- the contract ----------------------------------------------------------------------


@pytest.fixture(params=POLICIES)
def member(request):
    def make(*, lower_is_better=True, gain_per_20_added_lines=0.001):
        return load_policy(
            request.param,
            lower_is_better=lower_is_better,
            gain_per_20_added_lines=gain_per_20_added_lines,
        )

    return make


class TestEveryPolicy:
    def test_wants_a_first_run_and_in_the_end_no_more(self, member):
        for before in (History(None), BEFORE):
            assert member().choose_next_run((), before) == "candidate"
            assert member().choose_next_run(scores(*[1.0] * 100), before) == "nothing"

    def test_keeps_a_baseline_whatever_it_scored(self, member):
        verdict = member().decide(scores(123.0), History(None), NONE)

        assert (verdict.decision, verdict.against) == ("keep", None)

    def test_keeps_what_is_far_better_and_discards_what_is_far_worse(self, member):
        for lower, better, worse in ((True, 0.1, 9.0), (False, 9.0, 0.1)):
            decide = member(lower_is_better=lower).decide
            assert decide(scores(better), BEFORE, NONE).decision == "keep"
            assert decide(scores(worse), BEFORE, NONE).decision == "discard"

    def test_never_keeps_what_is_no_number(self, member):
        for lower in (True, False):
            decide = member(lower_is_better=lower).decide
            assert decide(scores(math.nan), BEFORE, NONE).decision == "discard"

    def test_gives_its_evidence_and_its_reason_in_one_line(self, member):
        for value in (0.5, 1.0, 2.0):
            evidence = scores(value)
            verdict = member().decide(evidence, BEFORE, CodeSizeChange(3, 0))

            assert verdict.evidence is evidence
            assert verdict.against is BEFORE.champion
            assert verdict.reason
            assert "\n" not in verdict.reason

    def test_says_the_same_when_asked_again(self, member):
        asked = member()

        first, second = (
            asked.decide(scores(0.9), BEFORE, CodeSizeChange(5, 0)) for _ in range(2)
        )

        assert first == second

    def test_is_a_value(self, member):
        assert member() == member()
        assert hash(member()) == hash(member())

    def test_starts_from_something_measured_or_leaves_it_to_the_champion(self, member):
        rows = line(0.0, -0.01, 0.004, -0.02)
        before = History(
            Champion(1, "1", (0.99,)), tuple(r.values for r in rows), rows=rows
        )

        assert member().choose_parent(History(None), ()) is None
        assert member().choose_parent(before, rows) in {None, "0", "1", "2", "3"}
        assert member().choose_parent(before, rows) == member().choose_parent(
            before, rows
        )

    def test_follows_the_direction_of_the_metric(self, member):
        """A night seen in a mirror is the same night."""
        told = []
        for lower, sign in ((True, 1), (False, -1)):
            asked = member(lower_is_better=lower)
            for value in (0.9, 0.995, 0.9985, 1.0, 1.01):
                before = History(
                    champion(*(sign * v for v in THREE)),
                    (tuple(sign * v for v in THREE),),
                )
                told.append(
                    (
                        asked.choose_next_run(scores(sign * value), before),
                        asked.decide(scores(sign * value), before, NONE).decision,
                    )
                )

        assert told[:5] == told[5:]


def test_an_unknown_policy_names_those_there_are():
    with pytest.raises(LabError, match=r"noisy.*greedy"):
        load_policy("noisy", lower_is_better=True, gain_per_20_added_lines=0.0)


# -- greedy ----------------------------------------------------------------------------


def test_one_run_settles_it():
    assert GreedyPolicy().choose_next_run((), History(CHAMPION)) == "candidate"
    assert GreedyPolicy().choose_next_run(scores(2.0), History(CHAMPION)) == "nothing"


@pytest.mark.parametrize(
    ("value", "lower", "decision"),
    [
        (1.0, True, "discard"),
        (1.0, False, "discard"),
        (math.nextafter(1.0, 0), True, "keep"),
        (math.nextafter(1.0, 2), True, "discard"),
        (math.nextafter(1.0, 2), False, "keep"),
        (math.nextafter(1.0, 0), False, "discard"),
    ],
)
def test_only_strictly_better_wins(value, lower, decision):
    verdict = GreedyPolicy(lower_is_better=lower).decide(
        scores(value), History(CHAMPION), NONE
    )

    assert verdict.decision == decision


def test_a_tie_is_not_called_worse_by_minus_nothing():
    assert "-" not in GreedyPolicy().decide(scores(1.0), History(CHAMPION), NONE).reason


@pytest.mark.parametrize(
    ("won", "added", "decision"),
    [
        (0.0009, 0, "keep"),
        (0.0009, -50, "keep"),
        (0.0011, 20, "keep"),
        (0.0009, 20, "discard"),
        (0.0009, 17, "keep"),
        (0.0019, 40, "discard"),
        (0.0021, 40, "keep"),
    ],
)
def test_twenty_added_lines_must_gain_a_thousandth(won, added, decision):
    verdict = GreedyPolicy().decide(
        scores(1.0 - won), History(CHAMPION), CodeSizeChange(added, 0)
    )

    assert verdict.decision == decision
    if decision == "discard":
        assert f"{added} added lines" in verdict.reason


def test_lines_are_free_where_program_md_says_so():
    free = GreedyPolicy(gain_per_20_added_lines=0.0)

    assert (
        free.decide(
            scores(0.999999), History(CHAMPION), CodeSizeChange(5000, 0)
        ).decision
        == "keep"
    )


def test_the_champions_score_is_the_mean_of_its_runs_never_the_luckiest():
    rival = champion(0.8, 1.0, 1.2)

    assert GreedyPolicy().decide(scores(0.9), History(rival), NONE).decision == "keep"
    assert (
        GreedyPolicy().decide(scores(0.9, 1.2), History(rival), NONE).decision
        == "discard"
    )


@given(FINITE, FINITE)
def test_the_direction_turns_the_gain_around(value, other):
    lower = compute_gain(scores(value), champion(other), lower_is_better=True)
    higher = compute_gain(scores(value), champion(other), lower_is_better=False)

    assert lower == -higher
    assert (lower > 0) == (value < other)


@given(FINITE, FINITE, st.integers(-1000, 1000), st.booleans())
def test_nothing_is_kept_that_is_not_better(value, other, added, lower):
    verdict = GreedyPolicy(lower_is_better=lower).decide(
        scores(value), History(champion(other)), CodeSizeChange(added, 0)
    )

    if verdict.decision == "keep":
        assert value < other if lower else value > other


# -- noise-aware -----------------------------------------------------------------------

NOISE_AWARE = NoiseAwarePolicy()


def seen(*rows: Row, champion_of: int = 0, **more) -> History:
    """What a policy knows after these rows."""
    row = rows[champion_of]
    return History(
        Champion(row.number, row.blob, row.values),
        tuple(r.values for r in rows),
        rows=rows,
        **more,
    )


def candidate_of(parent: str, *values: float) -> tuple[Score, ...]:
    """Runs of a candidate that starts from this blob."""
    own = Candidate(Proposal(9, "idea", "X = 1\n", parent, "search"), "candidate")
    return tuple(replace(s, run=replace(s.run, candidate=own)) for s in scores(*values))


class TestNoiseAware:
    def test_runs_the_baseline_three_times(self):
        wanted = [
            NOISE_AWARE.choose_next_run(scores(*THREE[:n]), History(None))
            for n in range(4)
        ]

        assert wanted == ["candidate"] * 3 + ["nothing"]

    def test_a_clear_loser_gets_one_run(self):
        assert NOISE_AWARE.choose_next_run(scores(1.01), LATER) == "nothing"
        assert NOISE_AWARE.decide(scores(1.01), LATER, NONE).reason.startswith("worse")

    def test_while_noise_is_hardly_known_a_large_gain_runs_once_more(self):
        twice = (1.0, 1.001)
        early = History(champion(*twice), (twice,))  # one difference is all there is

        assert NOISE_AWARE.choose_next_run(scores(0.9970), early) == "candidate"
        assert NOISE_AWARE.choose_next_run(scores(1.01), early) == "nothing"
        assert (
            NOISE_AWARE.choose_next_run(scores(0.98), early) == "nothing"
        )  # far beyond that

    def test_a_winner_beyond_all_luck_needs_no_second_run(self):
        assert NOISE_AWARE.choose_next_run(scores(0.98), LATER) == "nothing"
        assert NOISE_AWARE.decide(scores(0.98), LATER, NONE).decision == "keep"

    def test_what_is_promising_is_run_on_fresh_seeds(self):
        late = seen(*line(*[0.0] + [0.005] * 25))
        soon = NoiseAwarePolicy(promising_z=2.0)

        assert soon.choose_next_run(scores(0.9963), late) == "candidate"
        # Early in a night the next gains are likely to settle it for nothing.
        assert soon.choose_next_run(scores(0.9963), BEFORE) == "nothing"
        # By default it waits for more belief, or for the end of the night.
        assert NOISE_AWARE.choose_next_run(scores(0.9963), late) == "nothing"

    def test_the_run_that_made_it_promising_has_no_vote(self):
        lucky = scores(0.9963, 1.004)

        assert NOISE_AWARE.choose_next_run(lucky, BEFORE) == "nothing"
        assert NOISE_AWARE.decide(lucky, BEFORE, NONE).decision == "discard"

    def test_fresh_runs_that_agree_crown_it(self):
        verdict = NOISE_AWARE.decide(scores(0.9963, 0.9962, 0.9966), BEFORE, NONE)

        assert verdict.decision == "keep"
        assert "3 runs" in verdict.reason

    def test_a_small_gain_is_discarded_as_unresolved_and_worked_on_from(self):
        rows = line(0.0, -0.0015)

        verdict = NOISE_AWARE.decide(scores(0.9985), BEFORE, NONE)

        assert verdict.decision == "unresolved"
        assert verdict.reason.startswith("unresolved")
        assert NOISE_AWARE.choose_parent(seen(*rows), rows) == "1"

    def test_small_gains_add_up_until_they_are_proven(self):
        rows = line(0.0, -0.0015, -0.0015, -0.0015)
        before = seen(*rows)
        more = candidate_of("3", 0.9940, 0.9941, 0.9939)

        assert NOISE_AWARE.decide(more, before, NONE).decision == "keep"

    def test_shares_the_runs_with_the_champion(self):
        rows = (Row(0, "0", "", THREE, "keep"), Row(1, "1", "0", (0.99,), "keep"))
        before = seen(*rows, champion_of=1)
        promising = candidate_of("1", 0.9868, 0.9866)

        assert NOISE_AWARE.choose_next_run(promising, before) == "champion"

    def test_a_champion_that_nobody_challenges_is_run_again(self):
        rows = line(*[0.0] + [0.005] * 100)

        assert NOISE_AWARE.choose_next_run((), seen(*rows[:50])) == "candidate"
        assert NOISE_AWARE.choose_next_run((), seen(*rows)) == "champion"

    def test_what_is_promising_when_the_night_ends_gets_a_second_look(self):
        night = seen(*line(0.0, -0.003))

        assert NOISE_AWARE.choose_closing_run(night, 50) is None
        assert NOISE_AWARE.choose_closing_run(night, 0) == "1"

    def test_all_runs_of_a_second_look_are_fresh_and_there_is_one_only(self):
        rows = line(0.0, -0.003)
        own = Candidate(Proposal(9, "again", "X = 1\n", "0", "autoresearch"), "1")
        again = tuple(
            replace(s, run=replace(s.run, candidate=own))
            for s in scores(0.9960, 0.9965)
        )
        looked = (*rows, replace(rows[1], number=9))

        assert NOISE_AWARE.decide(again, seen(*rows), NONE).decision == "keep"
        assert NOISE_AWARE.choose_closing_run(seen(*looked), 0) is None

    def test_a_night_without_promise_ends_as_it_is(self):
        assert NOISE_AWARE.choose_closing_run(seen(*line(0.0, 0.005, 0.004)), 0) is None
        assert NOISE_AWARE.choose_closing_run(History(None), 0) is None

    def test_never_runs_a_candidate_for_ever(self):
        values = [0.9975]
        while NOISE_AWARE.choose_next_run(scores(*values), BEFORE) == "candidate":
            values.append(0.9975)

        assert len(values) <= 6

    def test_added_lines_raise_the_bar(self):
        won = scores(0.99, 0.99, 0.99)

        assert NOISE_AWARE.decide(won, BEFORE, CodeSizeChange(20, 0)).decision == "keep"
        verdict = NOISE_AWARE.decide(won, BEFORE, CodeSizeChange(220, 0))
        assert verdict.decision == "discard"
        assert "220 added lines cost" in verdict.reason

    def test_a_removal_that_is_shown_not_worse_is_kept(self):
        same, removal = scores(*[1.0002] * 6), CodeSizeChange(0, 30)
        before = History(champion(*THREE * 4), (THREE * 4,))

        assert NOISE_AWARE.decide(same, before, NONE).decision == "discard"
        assert NOISE_AWARE.decide(same, before, removal).decision == "keep"
        asked = replace(before, change=removal)
        assert NOISE_AWARE.choose_next_run(scores(0.9998), asked) == "candidate"

    def test_a_removal_may_never_cost_more_than_the_noise(self):
        worse = scores(*[1.002] * 6)

        verdict = NOISE_AWARE.decide(worse, BEFORE, CodeSizeChange(0, 10_000))

        assert verdict.decision == "discard"

    def test_noise_that_nobody_measured_keeps_nothing_and_says_so(self):
        once = History(champion(1.0), ((1.0,),))

        assert NOISE_AWARE.choose_next_run(scores(0.9), once) == "champion"
        verdict = NOISE_AWARE.decide(scores(0.9), once, NONE)
        assert verdict.decision == "unresolved"
        assert "the noise is unknown" in verdict.reason

    def test_noise_known_from_few_runs_is_said(self):
        reason = NOISE_AWARE.decide(scores(1.1), BEFORE, NONE).reason

        assert "not yet sure: degrees of freedom 2" in reason

    @given(FINITE, FINITE, st.integers(-100, 100))
    def test_without_noise_it_decides_as_greedy(self, value, other, lines):
        same = History(champion(other, other, other), ((other,) * 3,))
        change = CodeSizeChange(max(0, lines), max(0, -lines))

        assert NOISE_AWARE.choose_next_run(scores(value), same) == "nothing"
        assert NOISE_AWARE.decide(scores(value), same, change) == GreedyPolicy().decide(
            scores(value), same, change
        )

    def test_negative_scores_are_scores(self):
        below = tuple(v - 5 for v in THREE)
        before = History(champion(*below), (below,))

        assert NOISE_AWARE.decide(scores(-4.02), before, NONE).decision == "keep"
        assert NOISE_AWARE.decide(scores(-3.98), before, NONE).decision == "discard"

    def test_a_champion_that_turns_out_worse_gives_way_to_the_one_before(self):
        former = Row(0, "0", "", THREE * 4, "keep")
        lucky = (0.9985, 1.003, 1.0032, 1.0028)
        rows = (former, Row(1, "1", "0", lucky, "keep"))
        then = Champion(0, "0", THREE * 4)
        now = replace(seen(*rows, champion_of=1), former_champions=(then,))

        assert NOISE_AWARE.find_champion_to_restore(now) == then
        good = (former, Row(1, "1", "0", (0.996, 0.9962, 0.9963), "keep"))
        still = replace(seen(*good, champion_of=1), former_champions=(then,))
        assert NOISE_AWARE.find_champion_to_restore(still) is None

    def test_a_drift_pauses_acceptance_until_the_champion_ran_side_by_side(self):
        values = tuple(1.0 + 0.001 * n + 0.0001 * (-1) ** n for n in range(10))
        hours = tuple(3600.0 * n for n in range(10))
        rows = (Row(0, "0", "", values, "keep"), Row(1, "1", "0", (1.0095,)))
        drifting = seen(*rows, end_times=(hours, (36_500.0,)))
        won = candidate_of("0", 0.98)

        assert NOISE_AWARE.choose_next_run(won, drifting) == "champion"
        verdict = NOISE_AWARE.decide(won, drifting, NONE)
        assert verdict.decision == "unresolved"
        assert "drift" in verdict.reason
        rows = (replace(rows[0], values=(*values, 1.01, 1.011)), rows[1])
        again = seen(*rows, end_times=((*hours, 36_900.0, 37_200.0), (36_500.0,)))
        assert NOISE_AWARE.decide(won, again, NONE).decision == "keep"


# -- anneal and islands ----------------------------------------------------------------


def climbed(member, height, steps: int) -> list[int]:
    """Where a walker on whole numbers has been, who proposes a step left or right."""
    rows, rng = (
        [Row(0, "0", "", (height(0),) * 2 + (height(0) + 1e-9,), "keep")],
        Random(1),
    )
    places = {"0": 0}
    for number in range(1, steps):
        before = seen(*rows)
        parent = member.choose_parent(before, before.rows) or "0"
        place = places[parent] + rng.choice((-1, 1))
        blob = str(number)
        places[blob] = place
        again = 0.001 * rng.gauss(0, 1)
        rows.append(Row(number, blob, parent, (height(place) + again,)))
        if number < 4:  # so that the noise is known
            rows[-1] = replace(rows[-1], values=(height(place) - again, height(place)))
    return list(places.values())


def valley(place: int) -> float:
    """0 is a summit; 2 is a higher one, behind a shallow valley. Lower is better."""
    return {0: 1.0, 1: 1.004, 2: 0.99}.get(place, 1.1)


def test_annealing_crosses_a_valley_that_the_others_never_enter():
    assert 2 in climbed(create_anneal_policy(), valley, 60)
    assert 2 not in climbed(NoiseAwarePolicy(), valley, 60)


def test_islands_climb_on_lines_of_their_own():
    rows = line(0.0)
    before = seen(*rows)
    islands = create_islands_policy()
    for number in range(1, 4):
        parent = islands.choose_parent(before, before.rows)
        assert parent == "0"
        row = Row(number, str(number), parent, (0.98 - number / 1000,))
        before = seen(*before.rows, row)

    heads = set()
    for number in range(4, 7):
        heads.add(islands.choose_parent(before, before.rows))
        row = Row(number, str(number), "nowhere", (1.1,))
        before = seen(*before.rows, row)

    assert heads == {"1", "2", "3"}


def test_islands_give_up_the_line_that_is_furthest_behind():
    rows = [Row(0, "0", "", THREE, "keep"), Row(1, "1", "0", (0.95,))]
    rows += [Row(n, str(n), "1", (1.1,)) for n in range(2, 91)]

    heads = {
        create_islands_policy().choose_parent(seen(*rows[:n]), rows[:n])
        for n in range(88, 91)
    }

    assert heads == {"1"}
