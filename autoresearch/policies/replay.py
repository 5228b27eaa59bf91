"""Decide a recorded night again by another policy, from the runs there are."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoresearch import experiment
from autoresearch.experiment import (
    Candidate,
    Champion,
    CodeSizeChange,
    Decision,
    History,
    Proposal,
    Row,
    Run,
    Score,
    Scores,
)
from autoresearch.policies import Policy

NO_CHANGE = CodeSizeChange(0, 0)
PLACEHOLDER_PATH = Path("simulated")
PLACEHOLDER_RUN_SECONDS = 330.0
CLOSING_RUNS = 10  # that may come after the last idea of a night
ANEW = 0.1  # of a train.py's own answers to seeds, what a change draws anew
MOST_LEFT = 12  # runs left of a night when it is first asked what its end is for

Effects = Callable[[random.Random], float]
Shape = Literal["normal", "heavy", "drift"]


@dataclass(frozen=True, slots=True)
class ReplayedVerdict:
    """What another policy says of an experiment that was run."""

    number: int
    decision: Decision
    reason: str
    missing: bool  # whether it would have asked for a run that nobody made


def replay_verdicts(
    rows: Sequence[Row], policy: Policy, known: experiment.Noise | None = None
) -> list[ReplayedVerdict]:
    """Decide a night again, from the runs there are.

    What it would have run and nobody did stays unknown, so this says which verdicts do
    not hold, not what the other policy would have found. The lineage is the recorded
    one. known: the noise that is left in the scores; None: what their runs show.
    """
    told: list[ReplayedVerdict] = []
    before: list[Row] = []
    champions: list[Champion] = []
    for row in rows:
        if not row.values:
            continue
        now = champions[-1] if champions else None
        history = History(
            now,
            tuple(past.values for past in before),
            experiment_count=max(0, len(before) - 1),
            former_champions=tuple(champions[:-1]),
            rows=tuple(before),
            noise=known,
        )
        candidate = Candidate(Proposal(row.number, "", "", row.parent, ""), row.blob)
        scores: Scores = ()
        for seed, value in enumerate(row.values):
            if policy.choose_next_run(scores, history) == "nothing":
                break
            scores += (build_score(candidate, seed, value),)
        verdict = policy.decide(
            scores or (build_score(candidate, 0, row.values[0]),), history, NO_CHANGE
        )
        wanted = len(scores) == len(row.values) and now is not None
        missing = wanted and policy.choose_next_run(scores, history) != "nothing"
        said = (row.number, verdict.decision, verdict.reason)
        told.append(ReplayedVerdict(*said, missing))
        before.append(row)
        if verdict.decision == "keep":
            champions.append(Champion(row.number, row.blob, row.values))
    return told


def build_score(candidate: Candidate, seed: int, value: float) -> Score:
    run = Run(
        candidate,
        seed,
        PLACEHOLDER_RUN_SECONDS,
        0.0,
        0.0,
        PLACEHOLDER_PATH,
        (),
        PLACEHOLDER_PATH,
    )
    return Score(run, value, 0.0, 0.0)
