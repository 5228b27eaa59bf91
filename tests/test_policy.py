"""Policies: what is kept. One contract for every member, then greedy's own rule."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.errors import LabError
from autoresearch.experiment import (
    Candidate,
    Champion,
    Change,
    History,
    Proposal,
    Run,
    Score,
)
from autoresearch.policy import gain, named
from autoresearch.policy.greedy import Greedy
from autoresearch.program import POLICIES

CANDIDATE = Candidate(Proposal(1, "an idea", "X = 1\n", "parent", "search"), "blob")
CHAMPION = Champion(0, "blob of the champion", (1.0,))
NONE = Change(0, 0)
FINITE = st.floats(-1e6, 1e6)


def scores(*values: float) -> tuple[Score, ...]:
    return tuple(
        Score(Run(CANDIDATE, n, 1.0, 0.1, 0.5, Path("w"), (), Path("l")), value, 0, 0.1)
        for n, value in enumerate(values)
    )


def champion(*values: float) -> Champion:
    return Champion(0, "blob of the champion", values)


# -- the contract ----------------------------------------------------------------------


@pytest.fixture(params=POLICIES)
def member(request):
    def make(*, lower_is_better=True, gain_per_20_added_lines=0.001):
        return named(
            request.param,
            lower_is_better=lower_is_better,
            gain_per_20_added_lines=gain_per_20_added_lines,
        )

    return make


class TestEveryPolicy:
    def test_wants_a_first_run_and_in_the_end_no_more(self, member):
        for rival in (None, CHAMPION):
            assert member().wants((), History(rival)) == "candidate"
            assert member().wants(scores(*[1.0] * 100), History(rival)) == "nothing"

    def test_keeps_a_baseline_whatever_it_scored(self, member):
        verdict = member().decide(scores(123.0), History(None), NONE)

        assert (verdict.decision, verdict.against) == ("keep", None)

    def test_keeps_what_is_far_better_and_discards_what_is_far_worse(self, member):
        for lower, better, worse in ((True, 0.1, 9.0), (False, 9.0, 0.1)):
            decide = member(lower_is_better=lower).decide
            assert decide(scores(better), History(CHAMPION), NONE).decision == "keep"
            assert decide(scores(worse), History(CHAMPION), NONE).decision == "discard"

    def test_never_keeps_what_is_no_number(self, member):
        for lower in (True, False):
            decide = member(lower_is_better=lower).decide
            assert (
                decide(scores(math.nan), History(CHAMPION), NONE).decision == "discard"
            )

    def test_gives_its_evidence_and_its_reason_in_one_line(self, member):
        for value in (0.5, 1.0, 2.0):
            evidence = scores(value)
            verdict = member().decide(evidence, History(CHAMPION), Change(3, 0))

            assert verdict.evidence is evidence
            assert verdict.against is CHAMPION
            assert verdict.reason
            assert "\n" not in verdict.reason

    def test_says_the_same_when_asked_again(self, member):
        asked = member()

        first, second = (
            asked.decide(scores(0.9), History(CHAMPION), Change(5, 0)) for _ in range(2)
        )

        assert first == second


def test_an_unknown_policy_names_those_there_are():
    with pytest.raises(LabError, match=r"noisy.*greedy"):
        named("noisy", lower_is_better=True, gain_per_20_added_lines=0.0)


# -- greedy ----------------------------------------------------------------------------


def test_one_run_settles_it():
    assert Greedy().wants((), History(CHAMPION)) == "candidate"
    assert Greedy().wants(scores(2.0), History(CHAMPION)) == "nothing"


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
    verdict = Greedy(lower_is_better=lower).decide(
        scores(value), History(CHAMPION), NONE
    )

    assert verdict.decision == decision


def test_a_tie_is_not_called_worse_by_minus_nothing():
    assert "-" not in Greedy().decide(scores(1.0), History(CHAMPION), NONE).reason


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
    verdict = Greedy().decide(scores(1.0 - won), History(CHAMPION), Change(added, 0))

    assert verdict.decision == decision
    if decision == "discard":
        assert f"{added} added lines" in verdict.reason


def test_lines_are_free_where_program_md_says_so():
    free = Greedy(gain_per_20_added_lines=0.0)

    assert (
        free.decide(scores(0.999999), History(CHAMPION), Change(5000, 0)).decision
        == "keep"
    )


def test_the_champions_score_is_the_mean_of_its_runs_never_the_luckiest():
    rival = champion(0.8, 1.0, 1.2)

    assert Greedy().decide(scores(0.9), History(rival), NONE).decision == "keep"
    assert Greedy().decide(scores(0.9, 1.2), History(rival), NONE).decision == "discard"


@given(FINITE, FINITE)
def test_the_direction_turns_the_gain_around(value, other):
    lower = gain(scores(value), champion(other), lower_is_better=True)
    higher = gain(scores(value), champion(other), lower_is_better=False)

    assert lower == -higher
    assert (lower > 0) == (value < other)


@given(FINITE, FINITE, st.integers(-1000, 1000), st.booleans())
def test_nothing_is_kept_that_is_not_better(value, other, added, lower):
    verdict = Greedy(lower_is_better=lower).decide(
        scores(value), History(champion(other)), Change(added, 0)
    )

    if verdict.decision == "keep":
        assert value < other if lower else value > other


def test_a_policy_is_a_value():
    assert Greedy() == Greedy()
    assert Greedy.__hash__
