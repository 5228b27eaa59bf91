"""Several proposers, and the best of them at any moment gets the GPU: a bandit.

Thompson sampling (Thompson 1933) by a Bayesian bootstrap (Rubin 1981): what each arm's
experiments gained, newer ones counting more, under random weights; the arm with the
most gain per second of training in that draw is asked first, and who has no idea just
now is passed over. Every arm keeps a floor, so that one that was unlucky, or is good
only later, is heard again. The choice against UCB was made in simulation
(`benchmarks/search.py`, docs/LOG.md).

Rebuilt from the ledger at every proposal: a restart changes nothing, and whoever's
experiments are in the ledger under an arm's name are that arm's. Not covered: what an
arm costs in money (`desk.Purse`), only in seconds of the GPU.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoresearch.experiment import Proposal
from autoresearch.ledger import Ledger, Row
from autoresearch.proposers import Proposer

HALF_LIFE = 25.0  # experiments of that arm, after which a gain counts half
FLOOR = 0.3  # share of all proposals that is split evenly among the arms
PRIOR_WEIGHT = 1.0  # of one gain of the typical size that every arm is credited with
CURIOSITY = 0.5  # of UCB


@dataclass
class Arm:
    """What one proposer has brought: (gain, seconds of the GPU), oldest first."""

    results: list[tuple[float, float]] = field(default_factory=list)
    last: int = -1  # place of its last proposal among all


class Hybrid:
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
        self._spare = spare

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(proposer.name for proposer in self.proposers)

    @property
    def exhausted(self) -> bool:
        """Whether all of them are, and nobody stands in."""
        return self._spare is None and all(
            proposer.exhausted for proposer in self.proposers
        )

    def propose(self, ledger: Ledger) -> Proposal | None:
        """The proposal of the first arm, in today's order, that has one."""
        rows = [row for row in ledger.rows() if row.parent]
        arms = histories(self.names, rows, lower_is_better=ledger.lower_is_better)
        waiting = len(ledger.open())
        rng = random.Random(f"{self._seed}:{len(rows)}:{waiting}")
        for place in self.order(arms, len(rows), rng):
            proposer = self.proposers[place]
            if not proposer.exhausted and (proposal := proposer.propose(ledger)):
                return proposal
        return self._spare.propose(ledger) if self._spare else None

    @property
    def names(self) -> list[str]:
        """One name per arm."""
        return [proposer.name for proposer in self.proposers]

    def order(self, arms: Sequence[Arm], total: int, rng: random.Random) -> list[int]:
        """The places of the arms: who is due by the floor, then who promises most."""
        unit = typical([gain for arm in arms for gain, _ in arm.results])
        seconds = typical([s for arm in arms for _, s in arm.results])
        if self._rule == "ucb":
            said = [bound(arm, unit, seconds, total) for arm in arms]
        else:
            said = [drawn(arm, unit, seconds, rng) for arm in arms]
        every = math.ceil(
            len(arms) / FLOOR
        )  # proposals between two of one arm, at most
        due = [total - arm.last > every for arm in arms]
        tie = [rng.random() for _ in arms]
        return sorted(
            range(len(arms)),
            key=lambda i: (not due[i], arms[i].last if due[i] else 0, -said[i], tie[i]),
        )


def histories(
    names: Sequence[str], rows: Sequence[Row], *, lower_is_better: bool
) -> list[Arm]:
    """Each arm's results; a discard or a failure gained nothing."""
    arms = {name: Arm() for name in names}
    sign = -1.0 if lower_is_better else 1.0
    for place, row in enumerate(rows):
        arm = arms.get(row.author)
        if arm is None:
            continue
        kept = row.decision == "keep" and row.delta is not None
        gain = max(0.0, sign * (row.delta or 0.0)) if kept else 0.0
        arm.results.append((gain, row.seconds + row.evaluation_seconds))
        arm.last = place
    return [arms[name] for name in names]


def typical(numbers: Sequence[float]) -> float:
    """The mean of what is positive; 1 where nothing is."""
    positive = [number for number in numbers if number > 0]
    return sum(positive) / len(positive) if positive else 1.0


def weights_of(count: int) -> list[float]:
    """How much each result counts, oldest first."""
    return [0.5 ** ((count - 1 - place) / HALF_LIFE) for place in range(count)]


def drawn(arm: Arm, unit: float, seconds: float, rng: random.Random) -> float:
    """Gain per second under random weights, with one hopeful result to begin with."""
    weight = PRIOR_WEIGHT * rng.expovariate(1.0)
    gained, spent = weight * unit, weight * seconds
    counts = weights_of(len(arm.results))
    for (gain, took), count in zip(arm.results, counts, strict=True):
        weight = count * rng.expovariate(1.0)
        gained += weight * gain
        spent += weight * took
    return gained / spent if spent else 0.0


def bound(arm: Arm, unit: float, seconds: float, total: int) -> float:
    """Gain per second, plus what may be hoped for: discounted UCB."""
    counts = weights_of(len(arm.results))
    tries = PRIOR_WEIGHT + sum(counts)
    gained = PRIOR_WEIGHT * unit
    spent = PRIOR_WEIGHT * seconds
    for (gain, took), count in zip(arm.results, counts, strict=True):
        gained += count * gain
        spent += count * took
    hope = CURIOSITY * unit * math.sqrt(math.log(total + 2) / tries)
    return (gained / tries + hope) * tries / spent if spent else 0.0
