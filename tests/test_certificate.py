"""The certificate: pairs by seed, Student's interval, and the gap to the holdout."""

import math
import random
from pathlib import Path
from statistics import fmean

import pytest

from autoresearch.experiment import Candidate, Proposal, Run, Score, Verdict
from autoresearch.git import compute_blob_id
from autoresearch.records.ledger import Ledger
from autoresearch.records.queries import load_certificate, load_pairs
from autoresearch.stats import quantiles
from autoresearch.stats.paired import PairedGain, compute_certificate


def score_of(proposal, seed, value, holdout=None):
    blob = compute_blob_id(proposal.source)
    run = Run(
        Candidate(proposal, blob), seed, 1.0, 0.0, 0.1, Path("w"), (), Path("l")
    )  # fmt: skip
    return Score(run, value, 0.0, 0.1, 1000.0 + seed, holdout)


class Night:
    """A real ledger with a baseline and a champion that gains 0.1."""

    def __init__(self, path, *, lower_is_better=True):
        self.sign = 1 if lower_is_better else -1
        self.ledger = Ledger(path, lower_is_better=lower_is_better)
        self.ledger.begin_session("s1", "{}", 0, "{}")
        self.proposals = []
        for level in (1.0, 0.9):
            reigning = self.ledger.champion
            source = f"X = {level}\n"
            proposal = self.ledger.admit_proposal(
                Proposal(
                    None if reigning else 0, source, source,
                    reigning.blob if reigning else "", "search",
                ),
                compute_blob_id(source),
                source,
            )  # fmt: skip
            self.proposals.append(proposal)
            scores = (score_of(proposal, 7, self.sign * level),)
            verdict = Verdict("keep", "why", scores, reigning)
            self.ledger.record_verdict(verdict, commit=None, at=1000.0)

    def replicate(self, which, seed, value, holdout=None):
        score = score_of(self.proposals[which], seed, self.sign * value, holdout)
        self.ledger.record_runs((score,), "replicate")

    def certificate(self):
        numbers = [proposal.number for proposal in self.proposals]
        return load_certificate(self.ledger, numbers[1], numbers[0])


@pytest.fixture
def night(tmp_path):
    return Night(tmp_path / "ledger.db")


def test_runs_that_were_not_made_to_replicate_do_not_count(night):
    assert night.certificate() is None


def test_only_seeds_that_both_ran_are_pairs(night):
    night.replicate(0, 11, 1.02)
    night.replicate(0, 12, 1.00)
    night.replicate(1, 12, 0.88)
    night.replicate(1, 13, 0.80)

    (pair,) = load_pairs(night.ledger, 1, 0)

    assert pair.seed == 12
    assert pair.gain == pytest.approx(0.12)
    assert pair.holdout_gain is None


def test_one_pair_has_a_gain_and_no_interval(night):
    night.replicate(0, 12, 1.00)
    night.replicate(1, 12, 0.88)

    found = night.certificate()

    assert found.gain == pytest.approx(0.12)
    assert (found.low, found.high, found.pairs) == (None, None, 1)
    assert (found.holdout_gain, found.gap, found.holdout_pairs) == (None, None, 0)


def test_the_gap_is_what_validation_gained_more_than_the_holdout(night):
    for seed, shift in ((1, 0.0), (2, 0.01), (3, -0.01)):
        night.replicate(0, seed, 1.0 + shift, 1.1 + shift)
        night.replicate(1, seed, 0.9 + shift, 1.04 + shift)

    found = night.certificate()

    assert found.gain == pytest.approx(0.1)
    assert found.holdout_gain == pytest.approx(0.06)
    assert found.gap == pytest.approx(0.04)
    assert found.gap_low == pytest.approx(0.04)  # what a seed does to both cancels


def test_a_pair_without_a_holdout_counts_for_the_gain_alone(night):
    night.replicate(0, 1, 1.0, 1.1)
    night.replicate(1, 1, 0.9, 1.0)
    night.replicate(0, 2, 1.0, 1.1)
    night.replicate(1, 2, 0.9)

    found = night.certificate()

    assert (found.pairs, found.holdout_pairs) == (2, 1)
    assert found.gap == pytest.approx(0.0)
    assert found.gap_low is None


def test_higher_can_be_the_better_direction(tmp_path):
    night = Night(tmp_path / "ledger.db", lower_is_better=False)
    night.replicate(0, 1, 1.0)
    night.replicate(1, 1, 0.9)

    assert night.certificate().gain == pytest.approx(0.1)


def test_a_seed_run_twice_is_one_pair_still(night):
    night.replicate(0, 1, 1.0)
    night.replicate(1, 1, 0.9)
    night.replicate(1, 1, 0.8)

    found = night.certificate()

    assert found.pairs == 1
    assert found.gain == pytest.approx(0.15)


def test_a_baseline_has_no_certificate_against_itself(night):
    night.replicate(0, 1, 1.0)

    assert load_certificate(night.ledger, 0, 0) is None


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706204736), (2, 4.302652730), (3, 3.182446305), (7, 2.364624252)],
)
def test_the_quantile_is_students(degrees, quantile):
    assert quantiles.t_quantile_95(degrees) == pytest.approx(quantile, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(count):
    rng = random.Random(count)
    held = []
    for _ in range(2000):
        pairs = [PairedGain(seed, rng.gauss(0.3, 1), None) for seed in range(count)]
        found = compute_certificate(1, 0, pairs)
        held.append(found.low <= 0.3 <= found.high)

    assert 0.935 <= fmean(held) <= 0.965


def test_json_has_every_field_and_only_plain_numbers(night):
    night.replicate(0, 1, 1.0)
    night.replicate(1, 1, 0.9)

    found = night.certificate().to_json()

    assert set(found) == {
        "champion", "baseline", "gain", "low", "high", "pairs", "holdout_gain",
        "holdout_low", "holdout_high", "holdout_pairs", "gap", "gap_low", "gap_high",
    }  # fmt: skip
    assert all(n is None or math.isfinite(n) for n in found.values())
