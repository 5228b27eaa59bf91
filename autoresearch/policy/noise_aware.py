"""Noise-aware: explore along promising changes, crown only what fresh runs prove.

Two questions that greedy answers with one run are kept apart.

Where to go on from: the train.py that is believed best (`levels`). One run decides, and
nobody claims anything: such a change is recorded as unresolved.

What to believe: a candidate becomes champion when its runs on fresh seeds beat the
champion's beyond doubt. The run that made it promising has no vote, so the test is an
ordinary one and stays honest however promising candidates were picked. As what is
tested is everything since the champion, small gains add up until they are large enough
to prove, and a night holds a few tests, not a hundred. A difference that could not be
luck in a hundred tries is taken at once.

Promises (measured in benchmarks/verdicts.py): at most one false champion expected in a
hundred experiments that change nothing. Zero variance: greedy's verdicts.

Not covered: which of the changes along the line did it (`autoresearch ablate`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autoresearch import levels, noise
from autoresearch.experiment import Champion, Change, History, Scores, Tried, Verdict
from autoresearch.levels import Level
from autoresearch.noise import Noise
from autoresearch.policy import Wanted, gain
from autoresearch.policy.greedy import Greedy

BASELINE_RUNS = 3
MOST_RUNS = 6  # of one candidate
# Normal deviates. After one run: what a hundred tries without effect do not reach by
# luck. After 1, 2, ... fresh runs: a night tests a few candidates, each several times.
AT_ONCE = 3.6
PROVEN = (2.6, 2.1, 1.9, 1.8, 1.8)
PROMISING = 2.0  # believed gain over its standard deviation: worth proving
HOPELESS = 0.5
# A proof takes a few runs, so it waits until the champion of record lags by what the
# night gains in so many runs. Where gains are large the next one settles it for free.
LAG_RUNS = 10.0
# Student's correction alone would ask 20 standard deviations of the first large gains
# (three baseline runs leave 2 degrees of freedom) and cost a night 4 % of its gain. The
# false keeps that the milder one lets through are in the measured rate.
PRIOR_DEGREES = 8
REMEASURED_EVERY = 30  # experiments: a fresh run of a champion that nobody challenges
DEMOTED_BELOW = 1.65  # the former champion is better, with 95 % probability


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate against the champion, in noise units, higher is better."""

    candidate: Level
    champion: Level
    at_once: float  # normal deviate of all runs
    fresh: float  # of the runs but the first; -inf: there are none
    believed: float  # gain over its standard deviation
    lag: float  # gain, in what the night gains in a run


@dataclass(frozen=True, slots=True)
class NoiseAware:
    """See the top of the file."""

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    @property
    def greedy(self) -> Greedy:
        """What is left of this policy where there is no noise."""
        return Greedy(self.lower_is_better, self.gain_per_20_added_lines)

    def wants(self, scores: Scores, history: History) -> Wanted:
        """Fresh seeds for what is promising, shared between it and the champion."""
        champion = history.champion
        if champion is None:
            return "candidate" if len(scores) < BASELINE_RUNS else "nothing"
        if not scores:
            return "champion" if unattended(champion, history) else "candidate"
        if not all(math.isfinite(score.value) for score in scores):
            return "nothing"
        known = noise.pooled(history.replicates)
        if known is None:  # one run of everything so far: learn what a run is worth
            better = gain(scores, champion, lower_is_better=self.lower_is_better) > 0
            return "champion" if better else "nothing"
        if known.sd == 0 or len(scores) >= MOST_RUNS:
            return "nothing"
        standing = self.standing(scores, history, known, self.price(Change(0, 0)))
        if proven(standing, len(scores)) or self.lost(standing, len(scores)):
            return "nothing"
        balanced = champion.fresh + 1 >= len(scores) - 1
        return "candidate" if balanced else "champion"

    def lost(self, standing: Standing, runs: int) -> bool:
        """Whether more runs are a waste."""
        if runs > 1:
            return not standing.believed >= HOPELESS
        return not (standing.believed >= PROMISING and standing.lag >= LAG_RUNS)

    def decide(self, scores: Scores, history: History, change: Change) -> Verdict:
        """Keep what is proven better than the champion by more than its lines cost."""
        champion = history.champion
        known = noise.pooled(history.replicates)
        if champion is None or (known is not None and known.sd == 0):
            return self.greedy.decide(scores, history, change)
        won = gain(scores, champion, lower_is_better=self.lower_is_better)
        if not math.isfinite(won):
            return Verdict("discard", "worse by nan", scores, champion)
        if known is None:
            return self.unmeasured(scores, history, change)
        price = self.price(change)
        standing = self.standing(scores, history, known, price)
        said = f"gain {won:.6f} in {len(scores)} runs, noise {known.sd:.6f}"
        if proven(standing, len(scores)):
            return Verdict("keep", said, scores, champion)
        if standing.believed > 0:
            return Verdict("discard", f"unresolved: {said}", scores, champion)
        return Verdict("discard", f"worse: {said}", scores, champion)

    def unmeasured(self, scores: Scores, history: History, change: Change) -> Verdict:
        return self.greedy.decide(scores, history, change)

    def price(self, change: Change) -> float:
        """What a candidate must gain, in the metric's units; negative for a removal."""
        net = change.added_lines - change.removed_lines
        return self.gain_per_20_added_lines * net / 20

    def standing(
        self, scores: Scores, history: History, known: Noise, price: float
    ) -> Standing:
        """Everything that counts, from the runs there are."""
        champion = history.champion
        assert champion is not None
        unit = -known.sd if self.lower_is_better else known.sd
        found = levels.levels(history.rows, unit)
        values = [score.value / unit for score in scores]
        rival = [value / unit for value in champion.values]
        reigning = found.get(champion.blob) or Level(fmean(rival), 1 / len(rival))
        start = found.get(scores[0].run.candidate.proposal.parent, reigning)
        _, candidate = levels.after(start, fmean(values), len(values))
        price /= known.sd
        error = math.sqrt(1 / len(values) + reigning.variance)
        z = (fmean(values) - reigning.mean - price) / error
        fresh = -math.inf
        if len(values) > 1:
            error = math.sqrt(1 / (len(values) - 1) + reigning.variance)
            fresh = (fmean(values[1:]) - reigning.mean - price) / error
            fresh = noise.as_normal(fresh, known.degrees + PRIOR_DEGREES)
        spread = math.sqrt(candidate.variance + reigning.variance)
        ahead = candidate.mean - reigning.mean - price
        runs = sum(map(len, history.replicates))
        first = next(iter(found.values()), reigning)
        rate = max(0.0, max(reigning.mean, start.mean) - first.mean) / max(1, runs)
        return Standing(
            candidate,
            reigning,
            noise.as_normal(z, known.degrees + PRIOR_DEGREES),
            fresh,
            ahead / spread,
            ahead / rate if rate else math.inf,
        )

    def demoted(self, history: History) -> Champion | None:
        """The champion before, if fresh runs say that it was better."""
        return None

    def parent(self, history: History, rows: Sequence[Tried]) -> str | None:
        """The train.py that is believed best."""
        unit = unit_of(history, lower_is_better=self.lower_is_better)
        return levels.best(levels.levels(rows, unit)) if unit else None


def unit_of(history: History, *, lower_is_better: bool) -> float | None:
    """The noise's sd, negative where lower is better; None: unknown, or no noise."""
    known = noise.pooled(history.replicates)
    if known is None or known.sd == 0:
        return None
    return -known.sd if lower_is_better else known.sd


def proven(standing: Standing, runs: int) -> bool:
    """Whether fresh runs, or one run beyond all luck, put it above the champion."""
    if runs == 1:
        return standing.at_once >= AT_ONCE
    return standing.fresh >= PROVEN[min(runs - 1, len(PROVEN)) - 1]


def unattended(champion: Champion, history: History) -> bool:
    """Whether it is time to run the champion once more."""
    since = sum(row.number > champion.number for row in history.rows)
    return since >= REMEASURED_EVERY * (champion.fresh + 1)
