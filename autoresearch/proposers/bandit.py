"""A multi-armed bandit that shares the GPU among several proposers.

Thompson sampling (Thompson 1933) by a Bayesian bootstrap (Rubin 1981): what each arm's
experiments gained, newer ones counting more, under random weights; the arm with the
most gain per GPU second in that draw is asked first, and an arm without an idea is
skipped. Every arm keeps a minimum share, so that one that was unlucky, or improves
late, is tried again. The choice against UCB was made in simulation
(`benchmarks/search.py`, docs/LOG.md).

A gain is what a change did to the score of what it started from (`ledger.effects`), not
whether it was kept: a policy that knows the noise keeps little, and what it keeps has
the changes of several arms in it. Noise favours no arm; subtracting it first made no
difference in simulation. A crash is charged the time it took, and a refusal is charged
a share of a run.

Rebuilt from the ledger at every proposal: a restart changes nothing, and experiments of
this series belong to the arm whose name the ledger gives as author.

Not covered: what an arm costs in money (`toolkit.CostBudget`), only in GPU seconds.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from autoresearch.experiment import Proposal, Row
from autoresearch.proposers import Proposer
from autoresearch.records import queries
from autoresearch.records.ledger import LEDGER_ONLY_KINDS, Ledger
from autoresearch.stats.history import compute_change_effects

GAIN_HALF_LIFE = 25.0  # experiments of that arm, after which a gain counts half
EVEN_SPLIT_SHARE = 0.3  # share of all proposals that is split evenly among the arms
PRIOR_WEIGHT = 2.0  # gains of the typical size that every arm is credited with
REFUSED_COST_SHARE = 0.1  # of a run: what a proposal that never ran is counted as
UCB_EXPLORATION = 0.5  # of UCB


@dataclass
class Arm:
    """Results of one proposer: (gain, GPU seconds), oldest first."""

    results: list[tuple[float, float]] = field(default_factory=list)
    last_place: int = -1  # place of its last proposal among all


class Bandit:
    """Asks the arms in order of sampled gain rate; `rule` is for the benchmark."""

    def __init__(
        self,
        proposers: Sequence[Proposer],
        seed: int = 0,
        rule: str = "thompson",
        *,
        spare: Proposer | None = None,  # takes the GPU when no arm has an idea
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        self.proposers = proposers
        self.close = closing  # stops background proposers
        self._seed = seed
        self._rule = rule
        self._fallback = spare

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(proposer.name for proposer in self.proposers)

    @property
    def exhausted(self) -> bool:
        """Whether all arms are exhausted and there is no fallback."""
        return self._fallback is None and all(
            proposer.exhausted for proposer in self.proposers
        )

    def propose(self, ledger: Ledger) -> Proposal | None:
        """The first proposal, asking the arms in the order of this draw."""
        series = ledger.series or ledger.find_last_series()
        all_rows = queries.load_evidence(ledger, series).adjust_rows()
        rows = [row for row in all_rows if row.parent]
        sign = -1.0 if ledger.lower_is_better else 1.0
        arms = collect_results(self.arm_names, rows, compute_gains(all_rows, sign))
        waiting = len(ledger.load_open_proposals())
        rng = random.Random(f"{self._seed}:{len(rows)}:{waiting}")
        for place in self.rank_arms(arms, len(rows), rng):
            proposer = self.proposers[place]
            if not proposer.exhausted and (proposal := proposer.propose(ledger)):
                return proposal
        return self._fallback.propose(ledger) if self._fallback else None

    @property
    def arm_names(self) -> list[str]:
        """One name per arm."""
        return [proposer.name for proposer in self.proposers]

    def rank_arms(
        self, arms: Sequence[Arm], total: int, rng: random.Random
    ) -> list[int]:
        """Arm indices: those below their minimum share, then by sampled value."""
        unit = compute_positive_mean([gain for arm in arms for gain, _ in arm.results])
        seconds = compute_positive_mean([s for arm in arms for _, s in arm.results])
        if self._rule == "ucb":
            values = [compute_ucb(arm, unit, seconds, total) for arm in arms]
        else:
            values = [sample_gain_rate(arm, unit, seconds, rng) for arm in arms]
        every = math.ceil(
            len(arms) / EVEN_SPLIT_SHARE
        )  # proposals between two of one arm, at most
        due = [total - arm.last_place > every for arm in arms]
        tie = [rng.random() for _ in arms]
        return sorted(
            range(len(arms)),
            key=lambda i: (
                not due[i],
                arms[i].last_place if due[i] else 0,
                -values[i],
                tie[i],
            ),
        )


def compute_gains(rows: Sequence[Row], sign: float) -> dict[int, float]:
    """The gain of each experiment, at least 0: a bad idea costs only its time."""
    return {
        number: max(0.0, sign * by)
        for number, by in compute_change_effects(rows).items()
    }


def collect_results(
    names: Sequence[str], rows: Sequence[Row], gains: Mapping[int, float]
) -> list[Arm]:
    """Each arm's results; an experiment without a score counts as a gain of 0."""
    arms = {name: Arm() for name in names}
    usual = compute_positive_mean(
        [row.seconds + row.evaluation_seconds for row in rows]
    )
    for place, row in enumerate(rows):
        arm = arms.get(row.author)
        if arm is not None:
            arm.results.append(
                (gains.get(row.number, 0.0), estimate_gpu_seconds(row, usual))
            )
            arm.last_place = place
    return [arms[name] for name in names]


def estimate_gpu_seconds(row: Row, usual: float) -> float:
    """GPU seconds of an experiment; an estimate where it has no score."""
    if row.runs:
        return row.seconds + row.evaluation_seconds
    if row.kind in LEDGER_ONLY_KINDS:
        return REFUSED_COST_SHARE * usual
    between = row.decided_at - row.proposed_at
    return min(between, usual) if between > 0 else usual


def compute_positive_mean(numbers: Sequence[float]) -> float:
    """The mean of the positive numbers; 1 if there are none."""
    positive = [number for number in numbers if number > 0]
    return sum(positive) / len(positive) if positive else 1.0


def compute_weights(count: int) -> list[float]:
    """The weight of each result, oldest first."""
    return [0.5 ** ((count - 1 - place) / GAIN_HALF_LIFE) for place in range(count)]


def sample_gain_rate(
    arm: Arm, unit: float, seconds: float, rng: random.Random
) -> float:
    """Gain per GPU second under random weights, with an optimistic prior."""
    weight = PRIOR_WEIGHT * rng.expovariate(1.0)
    gained, spent = weight * unit, weight * seconds
    counts = compute_weights(len(arm.results))
    for (gain, took), count in zip(arm.results, counts, strict=True):
        weight = count * rng.expovariate(1.0)
        gained += weight * gain
        spent += weight * took
    return gained / spent if spent else 0.0


def compute_ucb(arm: Arm, unit: float, seconds: float, total: int) -> float:
    """Gain per GPU second plus an exploration bonus: discounted UCB."""
    counts = compute_weights(len(arm.results))
    tries = PRIOR_WEIGHT + sum(counts)
    gained = PRIOR_WEIGHT * unit
    spent = PRIOR_WEIGHT * seconds
    for (gain, took), count in zip(arm.results, counts, strict=True):
        gained += count * gain
        spent += count * took
    hope = UCB_EXPLORATION * unit * math.sqrt(math.log(total + 2) / tries)
    return (gained / tries + hope) * tries / spent if spent else 0.0
