"""Nights in a made-up lab, decided by the real policies: a thousand a minute and core.

The truth is known here, so false keeps, missed effects and claims can be counted. True
effects of changes are drawn from a spike and slab (most do nothing, some harm, few
help), scores are truth plus noise: normal, heavy-tailed, or drifting over the night.
`replayed` is the other way round: a recorded night, decided again by another policy.
`kills` is a night of learning curves, for what ends hopeless runs early.

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
    CodeSizeChange,
    Curve,
    Decision,
    History,
    PruneDecision,
    Proposal,
    Scores,
)
from autoresearch.policies import Policy
from autoresearch.policies.replay import score_of
from autoresearch.stats import early_stopping, gain, noise, seed_effects

NOTHING = CodeSizeChange(0, 0)
NOWHERE = Path("simulated")
RUN_SECONDS = 330.0
CLOSING_RUNS = 10  # that may come after the last idea of a night
ANEW = 0.1  # of a train.py's own answers to seeds, what a change draws anew
MOST_LEFT = 12  # runs left of a night when it is first asked what its end is for

Effects = Callable[[random.Random], float]
Shape = Literal["normal", "heavy", "drift"]


@dataclass(frozen=True, slots=True)
class Noise:
    """What a run's score differs from the truth by."""

    sd: float = 0.0005
    shape: Shape = "normal"
    # Of shape "drift": how far the machine moves in a night, in sd.
    drift_sd: float = 2.0
    # Of the variance: what a seed adds to whatever runs with it. A CPU with a token
    # budget is near 1, a GPU near 0.
    seed_share: float = 0.0
    # Of that: what a seed adds to this train.py and no other. A change draws a part of
    # it anew, so relatives answer to a seed alike.
    interaction: float = 0.0

    def draw(self, rng: random.Random, run: int, luck: float) -> float:
        """Positive is better. `run` counts the night's runs, `luck` is its seed's."""
        own = math.sqrt(1 - self.seed_share) * self.rest(rng, run)
        return own + math.sqrt(self.seed_share) * self.sd * luck

    def rest(self, rng: random.Random, run: int) -> float:
        """What is not the seed's."""
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
    why: str = ""
    before: int = 0  # runs of the same train.py under another number

    @property
    def runs(self) -> seed_effects.Runs:
        """Everything runs on the seeds 1, 2, ... in this order."""
        return tuple(enumerate(self.values, 1 + self.before))


@dataclass(slots=True)
class Lab:
    """A night under way."""

    policy: Policy
    effects: Effects
    noise: Noise
    ideas_of: random.Random  # draws what changes are worth
    luck: random.Random  # draws what runs score: so two policies meet the same ideas
    fate: random.Random  # draws what seeds are worth
    lower_is_better: bool = True
    start: float = 1.0  # the baseline's true score
    runs: int = 0
    rows: list[Simulated] = field(default_factory=list)
    champions: list[Simulated] = field(default_factory=list)
    lucky: list[float] = field(default_factory=list)  # what each seed is worth, in sd
    demotions: int = 0
    answers: dict[tuple[str, int], float] = field(default_factory=dict)
    ideas: int = 0  # tried so far
    end: int = 0  # runs when the last idea was done
    last_luck: seed_effects.Luck | None = (
        None  # what `made` is made with; None: nothing yet
    )
    made: dict[int, tuple[Simulated, Simulated]] = field(default_factory=dict)

    def measure(self, row: Simulated, place: int) -> float:
        """One run's score, of a train.py that had so many runs before."""
        while len(self.lucky) <= place:
            self.lucky.append(self.fate.gauss(0, 1))
        lucky = self.lucky[place]
        if self.noise.interaction:
            own = self.noise.interaction
            lucky = math.sqrt(1 - own) * lucky
            lucky += math.sqrt(own) * self.answer(row.blob, row.parent, place)
        value = row.truth + self.noise.draw(self.luck, self.runs, lucky)
        self.runs += 1
        return self.start - value if self.lower_is_better else self.start + value

    def answer(self, blob: str, parent: str, place: int) -> float:
        """What a seed does to this train.py alone, in standard deviations."""
        if (blob, place) not in self.answers:
            drawn = self.fate.gauss(0, 1)
            if parent:
                before = self.rows[int(parent)]
                kept = self.answer(parent, before.parent, place)
                drawn = math.sqrt(1 - ANEW) * kept + math.sqrt(ANEW) * drawn
            self.answers[blob, place] = drawn
        return self.answers[blob, place]

    def known(self) -> seed_effects.Luck:
        """What the runs so far tell of seeds, as `evidence` has it."""
        return seed_effects.luck([row.runs for row in self.rows if len(row.values) > 1])

    def history(self) -> History:
        """What the policy may know."""
        luck = self.known()
        rows = self.fair_rows(luck)
        fair = {row.number: row for row in rows}
        champions = [seen_as_champion(fair[row.number]) for row in self.champions]
        return History(
            champions[-1] if champions else None,
            tuple([row.values for row in rows]),
            tuple([row.when for row in rows]),
            max(0, len(rows) - 1),
            tuple(champions[:-1]),
            rows=tuple(rows),
            noise=luck.noise,
        )

    def fair_rows(self, luck: seed_effects.Luck) -> list[Simulated]:
        """Every row without the luck of its seeds; the same object if nothing is new.

        Levels are then worked out for the new rows only.
        """
        if luck is not self.last_luck:
            self.last_luck, self.made = luck, {}
        for row in self.rows:
            old = self.made.get(row.number)
            if old is None or old[0] is not row:
                fresh = replace(row, values=luck.without(row.runs))
                self.made[row.number] = (row, fresh)
        return [self.made[row.number][1] for row in self.rows]

    def fair(self, scores: Scores) -> Scores:
        """The candidate's scores without the luck of their seeds."""
        of = self.known().of
        return tuple(
            replace(score, value=score.value - of.get(score.run.seed, 0.0))
            for score in scores
        )

    def take(self, most_runs: float, ideas: float) -> Simulated | None:
        """One experiment, from its parent to its verdict; None: the night is over."""
        history = self.history()
        left = most_runs - self.runs
        over = self.ideas >= ideas
        if over:
            most_runs = min(most_runs, self.end + CLOSING_RUNS)
        if self.runs >= most_runs:
            return None
        need = () if left > MOST_LEFT and not over else self.need()
        first = left - len(need)
        again = self.policy.closing(history, 0 if over else first)
        if again is not None:
            return self.tried(self.rows[int(again)], history, most_runs)
        if need and (over or first <= 0):
            best, start = self.champions[-1], self.champions[0]
            self.remeasure(best if need[0] == best.blob else start)
            self.demote()
            return self.take(most_runs, ideas)
        if over:
            return None
        parent, truth, own = "", 0.0, 0.0
        if history.champion is not None:
            parent = self.policy.parent(history, history.rows) or history.champion.blob
            own = self.effects(self.ideas_of)
            truth = self.truth_of(parent) + own
        number = len(self.rows)
        idea = Simulated(number, str(number), parent, (), "discard", (), truth, own)
        found = self.tried(idea, history, most_runs)
        self.ideas += found is not None and bool(parent)
        self.end = self.runs
        return found

    def need(self) -> tuple[str, ...]:
        """What the claim still needs, as far as this night measures its noise."""
        if len(self.champions) < 2:
            return ()
        best, first = self.champions[-1].blob, self.champions[0].blob
        rows, lower = told(self.rows), self.lower_is_better
        return gain.wanted(rows, best, first, lower_is_better=lower)

    def tried(
        self, idea: Simulated, history: History, most_runs: float
    ) -> Simulated | None:
        """An idea, or an experiment once more; None: no runs were left."""
        number = len(self.rows)
        before = sum(len(row.values) for row in self.rows if row.blob == idea.blob)
        candidate = Candidate(Proposal(number, "", "", idea.parent, ""), idea.blob)
        scores: Scores = ()
        when: tuple[float, ...] = ()
        while self.runs < most_runs:
            wanted = self.policy.wants(self.fair(scores), history)
            if wanted == "nothing":
                break
            if wanted == "champion":
                self.remeasure(self.champions[-1])
                history = self.history()
                continue
            place = before + len(scores)
            value = self.measure(idea, place)
            scores += (score_of(candidate, place + 1, value),)
            when += (self.runs * RUN_SECONDS,)
        if not scores:
            return None
        verdict = self.policy.decide(self.fair(scores), history, NOTHING)
        values = tuple(score.value for score in scores)
        row = replace(
            idea, number=number, values=values, decision=verdict.decision, when=when,
            selected_by=len(scores), before=before,
        )  # fmt: skip
        self.rows.append(row)
        if verdict.decision == "keep":
            self.champions.append(row)
        self.demote()
        return row

    def remeasure(self, row: Simulated) -> None:
        """One more run of a champion, or of the baseline."""
        place = row.before + len(row.values)
        fresh = replace(
            row,
            values=(*row.values, self.measure(row, place)),
            when=(*row.when, self.runs * RUN_SECONDS),
        )
        self.rows[row.number] = fresh
        self.champions = [
            fresh if one.number == row.number else one for one in self.champions
        ]

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
    luck: Noise,
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
        luck,
        random.Random(f"ideas {seed}"),
        random.Random(f"luck {seed}"),
        random.Random(f"seeds {seed}"),
        lower_is_better,
    )
    kept_truth = [0.0]
    keeps = false = 0
    while (row := lab.take(runs, experiments)) is not None:
        if row.decision == "keep" and row.number:
            keeps += 1
            false += row.truth <= kept_truth[-1]
        kept_truth.append(lab.champions[-1].truth)
    return outcome(lab, keeps, false)


def outcome(lab: Lab, keeps: int, false: int) -> Outcome:
    """A finished night, counted."""
    first, last = lab.rows[0], lab.champions[-1]
    luck = lab.known()
    difference = fmean(luck.without(first.runs)) - fmean(luck.without(last.runs))
    inside = lineage(lab.rows, last)
    return Outcome(
        last.truth,
        difference if lab.lower_is_better else -difference,
        keeps,
        false,
        sum(row.own > 0 for row in lab.rows if not row.before),
        sum(row.own > 0 for row in inside),
        lab.ideas,
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


def claim(night: Outcome, *, lower_is_better: bool = True) -> noise.Claim | None:
    """What the ledger of a simulated night says its champion gained."""
    champion, baseline = night.champions[-1].blob, night.rows[0].blob
    return gain.claim(
        told(night.rows), champion, baseline, lower_is_better=lower_is_better
    )


def told(rows: Sequence[Simulated]) -> list[gain.Told]:
    """The rows as a ledger has them."""
    return [gain.Told(row, row.runs, row.when) for row in rows]


# -- learning curves -------------------------------------------------------------------

REPORTS = 60  # losses that a run reports


@dataclass(frozen=True, slots=True)
class Curves:
    """How losses on the way relate to the score at the end. In noise units.

    A change of the schedule shifts the middle of the curve, whatever the end will be;
    half of all proposals in recorded nights are such changes, and one in fifty
    of them hides it from `curves.touches_schedule`. These spreads are assumptions.
    """

    schedule: float = 0.5  # share of changes that touch the schedule
    hidden: float = 0.02  # of these
    schedule_shift: float = 15.0  # spread of what they do to the middle
    shape_shift: float = 1.5  # of what any change does
    reported: float = 1.5  # noise of a reported loss


@dataclass(frozen=True, slots=True)
class Kills:
    """A night in which hopeless runs were ended early."""

    saved: float  # share of all training time
    killed: int
    false: int  # killed runs that would have beaten their bar
    spared_won: tuple[bool, ...]  # of the spared tenth: did it beat its bar?


def kills(effects: Effects, made: Curves, seed: int, experiments: int = 100) -> Kills:
    """One night of learning curves; lower is better, noise has standard deviation 1."""
    rng = random.Random(f"curves {seed}")
    past: list[early_stopping.Finished] = []
    spared: list[bool] = []
    best, parent, saved, killed, false = 0.0, rng.gauss(0, 1), 0.0, 0, 0
    for number in range(experiments):
        score = best - effects(rng) + rng.gauss(0, 1)
        schedule = rng.random() < made.schedule
        told = schedule and rng.random() >= made.hidden
        curve = drawn_curve(rng, score, made, schedule=schedule)
        ended = first_hopeless(curve, past, best, parent, told)
        if ended is not None and not early_stopping.spared(seed, number):
            killed += 1
            saved += 1 - ended.progress
            false += score < best
            continue
        if ended is not None:
            spared.append(score < best)
        past.append(early_stopping.Finished(curve, score, told, parent))
        if score < best - 2:
            parent, best = (
                score,
                score + 1,
            )  # a champion's mean is less lucky than its first run
    return Kills(saved / experiments, killed, false, tuple(spared))


def first_hopeless(
    curve: Curve,
    past: Sequence[early_stopping.Finished],
    bar: float,
    parent: float,
    schedule: bool,
) -> PruneDecision | None:
    """Look at a run as the loop does: while it goes on."""
    for look in early_stopping.LOOKS:
        so_far = tuple(point for point in curve if point[0] <= look)
        ended = early_stopping.hopeless(
            so_far, past, bar, parent, schedule=schedule, lower_is_better=True
        )
        if ended is not None:
            return ended
    return None


def drawn_curve(
    rng: random.Random, score: float, made: Curves, *, schedule: bool
) -> Curve:
    """A power law down to the score, bent in the middle and noisy."""
    bend = rng.gauss(0, made.schedule_shift if schedule else made.shape_shift)
    points = []
    for step in range(1, REPORTS + 1):
        at = step / REPORTS
        falls = 300 * ((at + 0.05) ** -0.4 - 1.05**-0.4)
        middle = bend * 4 * at * (1 - at)
        points.append((at, score + falls + middle + rng.gauss(0, made.reported)))
    return tuple(points)
