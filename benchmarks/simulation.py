"""Simulated sessions under the real policies, and how fast they are simulated.

    python benchmarks/simulation.py --nights 200 --json    (half a minute)

Also the library behind `verdicts.py`. The truth is known here, so false keeps, missed
effects and claims can be counted. True effects of changes are drawn from a spike and
slab (most do nothing, some harm, few help); scores are truth plus noise: normal,
heavy-tailed, or drifting over the session. `simulate_pruning` is a session of learning
curves, for what ends hopeless runs early.

Promises: the policy sees exactly what it sees in the loop (`Scores`, `History`,
`CodeSizeChange`), and nothing of the truth.

Not covered: proposers that learn (effects are independent of what was kept), several
devices at once, failures, the price of added lines.

JSON keys:
  quick                            whether --quick was given: then no number counts
  policy                           the policy that decided
  nights                           sessions of 120 runs, 15 % of the changes helping by
                                   2 sd of a run on average
  sessions_per_minute              of CPU time, on one core
  true_gain_sd                     true gain of the last champion, mean
  claimed_gain_sd                  what its session claims, mean
  keeps                            changes kept per session
  false_keeps                      of these, no better than what they replaced
  experiments                      ideas tried per session
  runs_per_experiment              runs for each
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.experiment import (
    Candidate,
    Champion,
    CodeSizeChange,
    Curve,
    Decision,
    History,
    Proposal,
    PruneDecision,
    Scores,
)
from autoresearch.policies import Policy
from autoresearch.policies.registry import load_policy
from autoresearch.policies.replay import build_score
from autoresearch.stats import early_stopping, gain, noise, seed_effects

NO_CHANGE = CodeSizeChange(0, 0)
NOWHERE = Path("simulated")
RUN_SECONDS = 330.0
RUNS, HELPS, SIGNAL = 120, 0.15, 2.0  # of the sessions that `main` simulates
MAX_CLOSING_RUNS = 10  # after the last idea of a session
# Share of a train.py's own seed effects that a change redraws.
INTERACTION_REDRAW_SHARE = 0.1
CLOSING_PLAN_RUNS = 12  # runs left when the closing runs are first planned

EffectSampler = Callable[[random.Random], float]
NoiseShape = Literal["normal", "heavy", "drift"]


@dataclass(frozen=True, slots=True)
class SimulatedNoise:
    """The distribution of a run's score around the truth."""

    sd: float = 0.0005
    shape: NoiseShape = "normal"
    # Of shape "drift": how far the machine moves in a session, in sd.
    drift_sd: float = 2.0
    # Share of the variance that a seed adds to everything that runs with it: near 1
    # on a CPU with a token budget, near 0 on a GPU.
    seed_share: float = 0.0
    # Share of that which is specific to one train.py. A change redraws a part of it, so
    # the seed effects of related train.py are similar.
    interaction: float = 0.0

    def draw(self, rng: random.Random, run: int, luck: float) -> float:
        """Positive is better. `run` counts the session's runs, `luck` is its seed's."""
        own = math.sqrt(1 - self.seed_share) * self.draw_residual(rng, run)
        return own + math.sqrt(self.seed_share) * self.sd * luck

    def draw_residual(self, rng: random.Random, run: int) -> float:
        """The part that is independent of the seed."""
        if self.shape == "heavy":  # Student's t with 3 degrees, scaled to this sd
            square = sum(rng.gauss(0, 1) ** 2 for _ in range(3)) / 3
            return self.sd * rng.gauss(0, 1) / math.sqrt(3 * square)
        value = rng.gauss(0, self.sd)
        if self.shape == "drift":  # warming up over 120 runs: scores get worse
            value -= self.drift_sd * self.sd * min(1.0, run / 120)
        return value


def fixed_effect_sampler(share: float, size: float) -> EffectSampler:
    """A share of changes are worth `size`, the others nothing."""
    return lambda rng: size if rng.random() < share else 0.0


def spike_and_slab_sampler(
    helps: float, size: float, harms: float = 0.45, harm: float = 3.0
) -> EffectSampler:
    """Shares that help and harm, exponentially, of mean `size` and `harm * size`."""

    def draw(rng: random.Random) -> float:
        kind = rng.random()
        if kind < helps:
            return rng.expovariate(1 / size)
        return -rng.expovariate(1 / (harm * size)) if kind < helps + harms else 0.0

    return draw


@dataclass(eq=False, slots=True)
class SimulatedExperiment:
    """One experiment: what a policy may read of it, and the truth, which it may not."""

    number: int
    blob: str
    parent: str
    values: tuple[float, ...]
    decision: Decision
    when: tuple[float, ...]
    truth: float  # true level; positive is better, the baseline is 0
    own_effect: float  # true effect of its own change
    selected_by: int = 0  # how many of its runs crowned it
    why: str = ""
    before: int = 0  # runs of the same train.py under another number

    @property
    def seed_scores(self) -> seed_effects.SeedScores:
        """Everything runs on the seeds 1, 2, ... in this order."""
        return tuple(enumerate(self.values, 1 + self.before))


@dataclass(slots=True)
class SimulatedSession:
    """A session under way."""

    policy: Policy
    effects: EffectSampler
    noise: SimulatedNoise
    # One generator each, so that two policies meet the same ideas.
    effect_rng: random.Random
    noise_rng: random.Random
    seed_rng: random.Random
    lower_is_better: bool = True
    baseline_score: float = 1.0  # the baseline's true score
    run_count: int = 0
    rows: list[SimulatedExperiment] = field(default_factory=list)
    champions: list[SimulatedExperiment] = field(default_factory=list)
    seed_values: list[float] = field(default_factory=list)  # of each seed, in sd
    demotions: int = 0
    interactions: dict[tuple[str, int], float] = field(default_factory=dict)
    idea_count: int = 0  # tried so far
    runs_at_last_idea: int = 0  # runs when the last idea was done
    # What `adjusted` was computed with; None: nothing yet.
    last_effects: seed_effects.SeedEffects | None = None
    adjusted: dict[int, tuple[SimulatedExperiment, SimulatedExperiment]] = field(
        default_factory=dict
    )

    def draw_score(self, row: SimulatedExperiment, place: int) -> float:
        """The score of a run of a train.py that had `place` runs before."""
        while len(self.seed_values) <= place:
            self.seed_values.append(self.seed_rng.gauss(0, 1))
        lucky = self.seed_values[place]
        if self.noise.interaction:
            own = self.noise.interaction
            lucky = math.sqrt(1 - own) * lucky
            lucky += math.sqrt(own) * self.draw_interaction(row.blob, row.parent, place)
        value = row.truth + self.noise.draw(self.noise_rng, self.run_count, lucky)
        self.run_count += 1
        return (
            self.baseline_score - value
            if self.lower_is_better
            else self.baseline_score + value
        )

    def draw_interaction(self, blob: str, parent: str, place: int) -> float:
        """Effect of a seed that is specific to this train.py, in sd."""
        if (blob, place) not in self.interactions:
            drawn = self.seed_rng.gauss(0, 1)
            if parent:
                before = self.rows[int(parent)]
                kept = self.draw_interaction(parent, before.parent, place)
                drawn = (
                    math.sqrt(1 - INTERACTION_REDRAW_SHARE) * kept
                    + math.sqrt(INTERACTION_REDRAW_SHARE) * drawn
                )
            self.interactions[blob, place] = drawn
        return self.interactions[blob, place]

    def estimate_effects(self) -> seed_effects.SeedEffects:
        """Seed effects, estimated from the runs so far as the ledger's are."""
        return seed_effects.estimate_seed_effects(
            [row.seed_scores for row in self.rows if len(row.values) > 1]
        )

    def build_history(self) -> History:
        """What the policy may know."""
        luck = self.estimate_effects()
        rows = self.adjust_rows(luck)
        fair = {row.number: row for row in rows}
        champions = [
            champion_from_experiment(fair[row.number]) for row in self.champions
        ]
        return History(
            champions[-1] if champions else None,
            tuple([row.values for row in rows]),
            tuple([row.when for row in rows]),
            max(0, len(rows) - 1),
            tuple(champions[:-1]),
            rows=tuple(rows),
            noise=luck.noise,
        )

    def adjust_rows(self, luck: seed_effects.SeedEffects) -> list[SimulatedExperiment]:
        """Every row minus its seed effects; the same object if nothing is new.

        Posteriors are then computed for the new rows only.
        """
        if luck is not self.last_effects:
            self.last_effects, self.adjusted = luck, {}
        for row in self.rows:
            old = self.adjusted.get(row.number)
            if old is None or old[0] is not row:
                fresh = replace(row, values=luck.adjust_scores(row.seed_scores))
                self.adjusted[row.number] = (row, fresh)
        return [self.adjusted[row.number][1] for row in self.rows]

    def adjust_scores(self, scores: Scores) -> Scores:
        """The candidate's scores minus their seed effects."""
        of = self.estimate_effects().by_seed
        return tuple(
            replace(score, value=score.value - of.get(score.run.seed, 0.0))
            for score in scores
        )

    def run_experiment(
        self, most_runs: float, ideas: float
    ) -> SimulatedExperiment | None:
        """One experiment, from parent to verdict; None: the session is over."""
        history = self.build_history()
        left = most_runs - self.run_count
        over = self.idea_count >= ideas
        if over:
            most_runs = min(most_runs, self.runs_at_last_idea + MAX_CLOSING_RUNS)
        if self.run_count >= most_runs:
            return None
        need = () if left > CLOSING_PLAN_RUNS and not over else self.plan_gain_runs()
        first = left - len(need)
        again = self.policy.choose_closing_run(history, 0 if over else first)
        if again is not None:
            return self.run_trial(self.rows[int(again)], history, most_runs)
        if need and (over or first <= 0):
            best, start = self.champions[-1], self.champions[0]
            self.remeasure(best if need[0] == best.blob else start)
            self.restore_champion()
            return self.run_experiment(most_runs, ideas)
        if over:
            return None
        parent, truth, own = "", 0.0, 0.0
        if history.champion is not None:
            parent = (
                self.policy.choose_parent(history, history.rows)
                or history.champion.blob
            )
            own = self.effects(self.effect_rng)
            truth = self.find_truth(parent) + own
        number = len(self.rows)
        idea = SimulatedExperiment(
            number, str(number), parent, (), "discard", (), truth, own
        )
        found = self.run_trial(idea, history, most_runs)
        self.idea_count += found is not None and bool(parent)
        self.runs_at_last_idea = self.run_count
        return found

    def plan_gain_runs(self) -> tuple[str, ...]:
        """The runs that the claim still needs, given the noise measured so far."""
        if len(self.champions) < 2:
            return ()
        best, first = self.champions[-1].blob, self.champions[0].blob
        rows, lower = collect_measured(self.rows), self.lower_is_better
        return gain.plan_gain_runs(rows, best, first, lower_is_better=lower)

    def run_trial(
        self, idea: SimulatedExperiment, history: History, most_runs: float
    ) -> SimulatedExperiment | None:
        """Run an idea, or an experiment again; None: no runs were left."""
        number = len(self.rows)
        before = sum(len(row.values) for row in self.rows if row.blob == idea.blob)
        candidate = Candidate(Proposal(number, "", "", idea.parent, ""), idea.blob)
        scores: Scores = ()
        when: tuple[float, ...] = ()
        while self.run_count < most_runs:
            wanted = self.policy.choose_next_run(self.adjust_scores(scores), history)
            if wanted == "nothing":
                break
            if wanted == "champion":
                self.remeasure(self.champions[-1])
                history = self.build_history()
                continue
            place = before + len(scores)
            value = self.draw_score(idea, place)
            scores += (build_score(candidate, place + 1, value),)
            when += (self.run_count * RUN_SECONDS,)
        if not scores:
            return None
        verdict = self.policy.decide(self.adjust_scores(scores), history, NO_CHANGE)
        values = tuple(score.value for score in scores)
        row = replace(
            idea, number=number, values=values, decision=verdict.decision, when=when,
            selected_by=len(scores), before=before,
        )  # fmt: skip
        self.rows.append(row)
        if verdict.decision == "keep":
            self.champions.append(row)
        self.restore_champion()
        return row

    def remeasure(self, row: SimulatedExperiment) -> None:
        """One more run of a champion, or of the baseline."""
        place = row.before + len(row.values)
        fresh = replace(
            row,
            values=(*row.values, self.draw_score(row, place)),
            when=(*row.when, self.run_count * RUN_SECONDS),
        )
        self.rows[row.number] = fresh
        self.champions = [
            fresh if one.number == row.number else one for one in self.champions
        ]

    def restore_champion(self) -> None:
        """Put a former champion back, if the policy says so."""
        back = self.policy.find_champion_to_restore(self.build_history())
        if back is not None:
            self.demotions += 1
            while self.champions[-1].number != back.number:
                self.champions.pop()

    def find_truth(self, blob: str) -> float:
        return self.rows[int(blob)].truth


@dataclass(frozen=True, slots=True)
class SimulatedOutcome:
    """The true outcome of a session. Gains in the metric's units, positive: better."""

    gain: float  # of the last champion, truly
    claimed: float  # by its mean over all runs, as greedy claims
    keeps: int
    false_keeps: int  # no better than the champion they replaced
    real: int  # changes that truly help, among all tried
    kept: int  # of these, in the last champion
    experiments: int
    runs: int
    demotions: int
    rows: tuple[SimulatedExperiment, ...]
    champions: tuple[SimulatedExperiment, ...]


def simulate_session(
    policy: Policy,
    effects: EffectSampler,
    luck: SimulatedNoise,
    seed: int,
    *,
    runs: float = math.inf,
    experiments: float = math.inf,
    lower_is_better: bool = True,
) -> SimulatedOutcome:
    """Simulate one session of so many runs or experiments."""
    lab = SimulatedSession(
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
    while (row := lab.run_experiment(runs, experiments)) is not None:
        if row.decision == "keep" and row.number:
            keeps += 1
            false += row.truth <= kept_truth[-1]
        kept_truth.append(lab.champions[-1].truth)
    return summarize_session(lab, keeps, false)


def summarize_session(
    lab: SimulatedSession, keeps: int, false: int
) -> SimulatedOutcome:
    """Count what happened in a finished session."""
    first, last = lab.rows[0], lab.champions[-1]
    luck = lab.estimate_effects()
    difference = fmean(luck.adjust_scores(first.seed_scores)) - fmean(
        luck.adjust_scores(last.seed_scores)
    )
    inside = trace_ancestors(lab.rows, last)
    return SimulatedOutcome(
        last.truth,
        difference if lab.lower_is_better else -difference,
        keeps,
        false,
        sum(row.own_effect > 0 for row in lab.rows if not row.before),
        sum(row.own_effect > 0 for row in inside),
        lab.idea_count,
        lab.run_count,
        lab.demotions,
        tuple(lab.rows),
        tuple(lab.champions),
    )


def trace_ancestors(
    rows: Sequence[SimulatedExperiment], last: SimulatedExperiment
) -> list[SimulatedExperiment]:
    """All experiments whose changes are in a train.py, newest first."""
    found = []
    while last.parent:
        found.append(last)
        last = rows[int(last.parent)]
    return found


def champion_from_experiment(row: SimulatedExperiment) -> Champion:
    fresh = len(row.values) - row.selected_by
    return Champion(row.number, row.blob, row.values, fresh)


def estimate_simulated_gain(
    night: SimulatedOutcome, *, lower_is_better: bool = True
) -> noise.GainEstimate | None:
    """The gain that a simulated session claims for its champion."""
    champion, baseline = night.champions[-1].blob, night.rows[0].blob
    return gain.estimate_champion_gain(
        collect_measured(night.rows),
        champion,
        baseline,
        lower_is_better=lower_is_better,
    )


def collect_measured(
    rows: Sequence[SimulatedExperiment],
) -> list[gain.MeasuredExperiment]:
    """The rows as `gain` takes them."""
    return [gain.MeasuredExperiment(row, row.seed_scores, row.when) for row in rows]


# -- learning curves -------------------------------------------------------------------

REPORTS_PER_RUN = 60  # losses that a run reports


@dataclass(frozen=True, slots=True)
class CurveModel:
    """How losses during a run relate to its final score. In noise units.

    A change of the schedule shifts the middle of the curve, whatever the final score;
    half of all proposals in recorded sessions are such changes, and one in fifty of
    them is missed by `early_stopping.touches_schedule`. The spreads are assumptions.
    """

    schedule: float = 0.5  # share of changes that touch the schedule
    hidden: float = 0.02  # of these
    schedule_shift: float = 15.0  # spread of what they do to the middle
    shape_shift: float = 1.5  # of what any change does
    reported: float = 1.5  # noise of a reported loss


@dataclass(frozen=True, slots=True)
class PruningOutcome:
    """The outcome of a session in which hopeless runs were ended early."""

    saved: float  # share of all training time
    killed: int
    false: int  # killed runs that would have beaten their bar
    spared_won: tuple[bool, ...]  # of the spared tenth: did it beat its bar?


def simulate_pruning(
    effects: EffectSampler, made: CurveModel, seed: int, experiments: int = 100
) -> PruningOutcome:
    """One session of learning curves; lower is better, the noise has sd 1."""
    rng = random.Random(f"curves {seed}")
    past: list[early_stopping.FinishedRun] = []
    spared: list[bool] = []
    best, parent, saved, killed, false = 0.0, rng.gauss(0, 1), 0.0, 0, 0
    for number in range(experiments):
        score = best - effects(rng) + rng.gauss(0, 1)
        schedule = rng.random() < made.schedule
        told = schedule and rng.random() >= made.hidden
        curve = draw_curve(rng, score, made, schedule=schedule)
        ended = find_first_prune(curve, past, best, parent, told)
        if ended is not None and not early_stopping.is_exempt(seed, number):
            killed += 1
            saved += 1 - ended.progress
            false += score < best
            continue
        if ended is not None:
            spared.append(score < best)
        past.append(early_stopping.FinishedRun(curve, score, told, parent))
        if score < best - 2:
            parent = score
            best = score + 1  # a champion's mean is less lucky than its first run
    return PruningOutcome(saved / experiments, killed, false, tuple(spared))


def find_first_prune(
    curve: Curve,
    past: Sequence[early_stopping.FinishedRun],
    bar: float,
    parent: float,
    schedule: bool,
) -> PruneDecision | None:
    """Ask for a decision at each point where the loop does."""
    for look in early_stopping.LOOK_SHARES:
        so_far = tuple(point for point in curve if point[0] <= look)
        ended = early_stopping.decide_pruning(
            so_far, past, bar, parent, schedule=schedule, lower_is_better=True
        )
        if ended is not None:
            return ended
    return None


def draw_curve(
    rng: random.Random, score: float, made: CurveModel, *, schedule: bool
) -> Curve:
    """A noisy power law that ends at the score, bent in the middle."""
    bend = rng.gauss(0, made.schedule_shift if schedule else made.shape_shift)
    points = []
    for step in range(1, REPORTS_PER_RUN + 1):
        at = step / REPORTS_PER_RUN
        falls = 300 * ((at + 0.05) ** -0.4 - 1.05**-0.4)
        middle = bend * 4 * at * (1 - at)
        points.append((at, score + falls + middle + rng.gauss(0, made.reported)))
    return tuple(points)


# -- command line ----------------------------------------------------------------------


def measure_sessions(policy_name: str, count: int) -> dict[str, float]:
    """Simulate `count` sessions with normal noise; the means that --json prints."""
    noise_model = SimulatedNoise()
    effects = spike_and_slab_sampler(HELPS, SIGNAL * noise_model.sd)
    begun, sessions, claims = time.process_time(), [], []
    for seed in range(count):
        policy = load_policy(
            policy_name, lower_is_better=True, gain_per_20_added_lines=0.0
        )
        session = simulate_session(policy, effects, noise_model, seed, runs=RUNS)
        claimed = estimate_simulated_gain(session)
        sessions.append(session)
        claims.append(session.claimed if claimed is None else claimed.gain)
    minutes = (time.process_time() - begun) / 60
    runs = sum(session.runs for session in sessions)
    found = {
        "sessions_per_minute": count / minutes,
        "true_gain_sd": fmean(s.gain for s in sessions) / noise_model.sd,
        "claimed_gain_sd": fmean(claims) / noise_model.sd,
        "keeps": fmean(s.keeps for s in sessions),
        "false_keeps": fmean(s.false_keeps for s in sessions),
        "experiments": fmean(s.experiments for s in sessions),
        "runs_per_experiment": runs / max(1, sum(s.experiments for s in sessions)),
    }
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--policy", default="noise-aware")
    parser.add_argument("--quick", action="store_true", help="5 sessions")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.nights = 5
    found = {
        "quick": options.quick,
        "policy": options.policy,
        "nights": options.nights,
        **measure_sessions(options.policy, options.nights),
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<22} {value}")


if __name__ == "__main__":
    main()
