"""Replay a recorded session: decide it again with another policy, from its runs.

Not covered: runs that the other policy would have asked for and that were never made.
So a replay shows which verdicts do not hold, not what the other policy would find.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class ReplayedVerdict:
    """Another policy's verdict on a recorded experiment."""

    number: int
    decision: Decision
    reason: str
    missing: bool  # whether it would have asked for a run that was never made


def replay_verdicts(
    rows: Sequence[Row], policy: Policy, known: experiment.Noise | None = None
) -> list[ReplayedVerdict]:
    """Decide the recorded experiments again, in order.

    The lineage is the recorded one. known: the noise of the scores; None: estimated
    from their runs.
    """
    verdicts: list[ReplayedVerdict] = []
    before: list[Row] = []
    champions: list[Champion] = []
    for row in rows:
        if not row.values:
            continue
        champion = champions[-1] if champions else None
        history = History(
            champion,
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
        is_exhausted = len(scores) == len(row.values) and champion is not None
        missing = is_exhausted and policy.choose_next_run(scores, history) != "nothing"
        verdicts.append(
            ReplayedVerdict(row.number, verdict.decision, verdict.reason, missing)
        )
        before.append(row)
        if verdict.decision == "keep":
            champions.append(Champion(row.number, row.blob, row.values))
    return verdicts


def build_score(candidate: Candidate, seed: int, value: float) -> Score:
    """A score with placeholders for what policies do not read."""
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
