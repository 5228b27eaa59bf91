"""Several proposers, and the best of them at any moment gets the GPU: a bandit.

Thompson sampling (Thompson 1933) by a Bayesian bootstrap (Rubin 1981): what each arm's
experiments gained, newer ones counting more, under random weights; the arm with the
most gain per second of training in that draw is asked first, and who has no idea just
now is passed over. Every arm keeps a floor, so that one that was unlucky, or is good
only later, is heard again. The choice against UCB was made in simulation
(`benchmarks/search.py`, docs/LOG.md).

A gain is what a change did to the score of what it started from (`ledger.effects`), not
whether it was kept: a policy that knows the noise keeps little, and what it keeps has
the changes of several arms in it. Luck pays every arm alike; taking the noise off first
made no difference in simulation. Who crashes pays for the time it took, and a refusal
is not free.

Rebuilt from the ledger at every proposal: a restart changes nothing, and whoever's
experiments of this series are in the ledger under an arm's name are that arm's. Not
covered: what an
arm costs in money (`desk.Purse`), only in seconds of the GPU.
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
    """What one proposer has brought: (gain, seconds of the GPU), oldest first."""

    results: list[tuple[float, float]] = field(default_factory=list)
    last_place: int = -1  # place of its last proposal among all


class Bandit:
    """Asks the arms in the order of what they promise; `rule` is for the benchmark."""

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
        self.close = closing  # ends what thinks in the background
        self._seed = seed
        self._rule = rule
        self._fallback = spare

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(proposer.name for proposer in self.proposers)

    @property
    def exhausted(self) -> bool:
        """Whether all of them are, and nobody stands in."""
        return self._fallback is None and all(
            proposer.exhausted for proposer in self.proposers
        )

    def propose(self, ledger: Ledger) -> Proposal | None:
        """The proposal of the first arm, in today's order, that has one."""
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
        """The places of the arms: who is due by the floor, then who promises most."""
        unit = compute_positive_mean([gain for arm in arms for gain, _ in arm.results])
        seconds = compute_positive_mean([s for arm in arms for _, s in arm.results])
        if self._rule == "ucb":
            said = [compute_ucb(arm, unit, seconds, total) for arm in arms]
        else:
            said = [sample_gain_rate(arm, unit, seconds, rng) for arm in arms]
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
                -said[i],
                tie[i],
            ),
        )


def compute_gains(rows: Sequence[Row], sign: float) -> dict[int, float]:
    """What each experiment gained; nothing is lost by a bad idea but its time."""
    return {
        number: max(0.0, sign * by)
        for number, by in compute_change_effects(rows).items()
    }


def collect_results(
    names: Sequence[str], rows: Sequence[Row], gains: Mapping[int, float]
) -> list[Arm]:
    """Each arm's results; what has no score gained nothing, and took its time."""
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
    """Seconds of the GPU; of a run without a score as far as is known."""
    if row.runs:
        return row.seconds + row.evaluation_seconds
    if row.kind in LEDGER_ONLY_KINDS:
        return REFUSED_COST_SHARE * usual
    between = row.decided_at - row.proposed_at
    return min(between, usual) if between > 0 else usual


def compute_positive_mean(numbers: Sequence[float]) -> float:
    """The mean of what is positive; 1 where nothing is."""
    positive = [number for number in numbers if number > 0]
    return sum(positive) / len(positive) if positive else 1.0


def compute_weights(count: int) -> list[float]:
    """How much each result counts, oldest first."""
    return [0.5 ** ((count - 1 - place) / GAIN_HALF_LIFE) for place in range(count)]


def sample_gain_rate(
    arm: Arm, unit: float, seconds: float, rng: random.Random
) -> float:
    """Gain per second under random weights, with one hopeful result to begin with."""
    weight = PRIOR_WEIGHT * rng.expovariate(1.0)
    gained, spent = weight * unit, weight * seconds
    counts = compute_weights(len(arm.results))
    for (gain, took), count in zip(arm.results, counts, strict=True):
        weight = count * rng.expovariate(1.0)
        gained += weight * gain
        spent += weight * took
    return gained / spent if spent else 0.0


def compute_ucb(arm: Arm, unit: float, seconds: float, total: int) -> float:
    """Gain per second, plus what may be hoped for: discounted UCB."""
    counts = compute_weights(len(arm.results))
    tries = PRIOR_WEIGHT + sum(counts)
    gained = PRIOR_WEIGHT * unit
    spent = PRIOR_WEIGHT * seconds
    for (gain, took), count in zip(arm.results, counts, strict=True):
        gained += count * gain
        spent += count * took
    hope = UCB_EXPLORATION * unit * math.sqrt(math.log(total + 2) / tries)
    return (gained / tries + hope) * tries / spent if spent else 0.0
