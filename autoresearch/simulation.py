"""Nights in a made-up lab, decided by the real policies: a thousand a minute and core.

The truth is known here, so false keeps, missed effects and claims can be counted. True
effects of changes are drawn from a spike and slab (most do nothing, some harm, few
help), scores are truth plus noise: normal, heavy-tailed, or drifting over the night.
`replayed` is the other way round: a recorded night, decided again by another policy.

Promises: the policy sees exactly what it sees in the loop (`Scores`, `History`,
`Change`), and nothing of the truth.

Not covered: proposers that learn (effects are independent of what was kept), several
devices at once, failures, prices of lines.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from autoresearch.experiment import (
    Candidate,
    Champion,
    Change,
    Decision,
    History,
    Proposal,
    Run,
    Score,
    Scores,
)
from autoresearch.policy import Policy

NOTHING = Change(0, 0)
NOWHERE = Path("simulated")
RUN_SECONDS = 330.0

Effects = Callable[[random.Random], float]
Shape = Literal["normal", "heavy", "drift"]


@dataclass(frozen=True, slots=True)
class Noise:
    """What a run's score differs from the truth by."""

    sd: float = 0.0005
    shape: Shape = "normal"
    # Of shape "drift": how far the machine moves in a night, in sd.
    drift_sd: float = 2.0

    def draw(self, rng: random.Random, run: int) -> float:
        """Positive is better. `run` counts the night's runs."""
        if self.shape == "heavy":  # Student's t with 3 degrees, scaled to this sd
            square = sum(rng.gauss(0, 1) ** 2 for _ in range(3)) / 3
            return self.sd * rng.gauss(0, 1) / math.sqrt(3 * square)
        value = rng.gauss(0, self.sd)
        if self.shape == "drift":  # warming up over 120 runs: scores get worse
            value -= self.drift_sd * self.sd * min(1.0, run / 120)
        return value


def same_effect(share: float, size: float) -> Effects:
    """Some changes are worth `size`, the others nothing."""
    return lambda rng: size if rng.random() < share else 0.0


def spike_and_slab(
    helps: float, size: float, harms: float = 0.45, harm: float = 3.0
) -> Effects:
    """Shares that help and harm, exponentially, of mean `size` and `harm * size`."""

    def draw(rng: random.Random) -> float:
        kind = rng.random()
        if kind < helps:
            return rng.expovariate(1 / size)
        return -rng.expovariate(1 / (harm * size)) if kind < helps + harms else 0.0

    return draw


@dataclass(eq=False, slots=True)
class Simulated:
    """One experiment: what a policy may read of it, and the truth it may not."""

    number: int
    blob: str
    parent: str
    values: tuple[float, ...]
    decision: Decision
    when: tuple[float, ...]
    truth: float  # true level; positive is better, the baseline is 0
    own: float  # true effect of its own change
    selected_by: int = 0  # how many of its runs crowned it


@dataclass(slots=True)
class Lab:
    """A night under way."""

    policy: Policy
    effects: Effects
    noise: Noise
    ideas: random.Random  # draws what changes are worth
    luck: random.Random  # draws what runs score: so two policies meet the same ideas
    lower_is_better: bool = True
    start: float = 1.0  # the baseline's true score
    runs: int = 0
    rows: list[Simulated] = field(default_factory=list)
    champions: list[Simulated] = field(default_factory=list)
    demotions: int = 0

    def measure(self, truth: float) -> float:
        """One run's score."""
        value = truth + self.noise.draw(self.luck, self.runs)
        self.runs += 1
        return self.start - value if self.lower_is_better else self.start + value

    def history(self) -> History:
        """What the policy may know."""
        champions = [seen_as_champion(row) for row in self.champions]
        return History(
            champions[-1] if champions else None,
            tuple([row.values for row in self.rows]),
            tuple([row.when for row in self.rows]),
            max(0, len(self.rows) - 1),
            tuple(champions[:-1]),
            rows=tuple(self.rows),
        )

    def take(self, most_runs: float) -> Simulated | None:
        """One experiment, from its parent to its verdict; None: no runs were left."""
        history = self.history()
        parent, truth, own = "", 0.0, 0.0
        if history.champion is not None:
            parent = self.policy.parent(history, history.rows) or history.champion.blob
            own = self.effects(self.ideas)
            truth = self.truth_of(parent) + own
        number = len(self.rows)
        candidate = Candidate(Proposal(number, "", "", parent, ""), str(number))
        scores: Scores = ()
        when: tuple[float, ...] = ()
        while self.runs < most_runs:
            wanted = self.policy.wants(scores, history)
            if wanted == "nothing":
                break
            if wanted == "champion":
                self.remeasure()
                history = self.history()
                continue
            scores += (score_of(candidate, len(scores), self.measure(truth)),)
            when += (self.runs * RUN_SECONDS,)
        if not scores:
            return None
        verdict = self.policy.decide(scores, history, NOTHING)
        row = Simulated(
            number, str(number), parent, verdict.values, verdict.decision, when,
            truth, own, len(scores),
        )  # fmt: skip
        self.rows.append(row)
        if verdict.decision == "keep":
            self.champions.append(row)
        self.demote()
        return row

    def remeasure(self) -> None:
        """One more run of the champion."""
        row = self.champions[-1]
        fresh = replace(
            row,
            values=(*row.values, self.measure(row.truth)),
            when=(*row.when, self.runs * RUN_SECONDS),
        )
        self.champions[-1] = self.rows[self.rows.index(row)] = fresh

    def demote(self) -> None:
        """Put a former champion back, if the policy says so."""
        back = self.policy.demoted(self.history())
        if back is not None:
            self.demotions += 1
            while self.champions[-1].number != back.number:
                self.champions.pop()

    def truth_of(self, blob: str) -> float:
        return self.rows[int(blob)].truth


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a night was really worth. Gains in the metric's units, positive: better."""

    gain: float  # of the last champion, truly
    claimed: float  # by its mean over all runs, as greedy claims
    keeps: int
    false_keeps: int  # no better than the champion they replaced
    real: int  # changes that truly help, among all tried
    kept: int  # of these, in the last champion
    experiments: int
    runs: int
    demotions: int
    rows: tuple[Simulated, ...]
    champions: tuple[Simulated, ...]


def night(
    policy: Policy,
    effects: Effects,
    noise: Noise,
    seed: int,
    *,
    runs: float = math.inf,
    experiments: float = math.inf,
    lower_is_better: bool = True,
) -> Outcome:
    """One night of so many runs or experiments."""
    lab = Lab(
        policy,
        effects,
        noise,
        random.Random(f"ideas {seed}"),
        random.Random(f"luck {seed}"),
        lower_is_better,
    )
    kept_truth = [0.0]
    keeps = false = 0
    while lab.runs < runs and len(lab.rows) <= experiments:
        row = lab.take(runs)
        if row is None:
            break
        if row.decision == "keep" and row.number:
            keeps += 1
            false += row.truth <= kept_truth[-1]
        kept_truth.append(lab.champions[-1].truth)
    return outcome(lab, keeps, false)


def outcome(lab: Lab, keeps: int, false: int) -> Outcome:
    """A finished night, counted."""
    first, last = lab.rows[0], lab.champions[-1]
    difference = fmean(first.values) - fmean(last.values)
    inside = lineage(lab.rows, last)
    return Outcome(
        last.truth,
        difference if lab.lower_is_better else -difference,
        keeps,
        false,
        sum(row.own > 0 for row in lab.rows),
        sum(row.own > 0 for row in inside),
        len(lab.rows) - 1,
        lab.runs,
        lab.demotions,
        tuple(lab.rows),
        tuple(lab.champions),
    )


def lineage(rows: Sequence[Simulated], last: Simulated) -> list[Simulated]:
    """Everything that is in a train.py, back to the baseline."""
    found = []
    while last.parent:
        found.append(last)
        last = rows[int(last.parent)]
    return found


def seen_as_champion(row: Simulated) -> Champion:
    fresh = len(row.values) - row.selected_by
    return Champion(row.number, row.blob, row.values, fresh)


def score_of(candidate: Candidate, seed: int, value: float) -> Score:
    run = Run(candidate, seed, RUN_SECONDS, 0.0, 0.0, NOWHERE, (), NOWHERE)
    return Score(run, value, 0.0, 0.0)
