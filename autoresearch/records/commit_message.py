"""The text of a verdict's commit: title, body and trailers."""

import re
from statistics import fmean

from autoresearch import git
from autoresearch.experiment import (
    Failure,
    Scores,
    Verdict,
    status_from_decision,
)
from autoresearch.git import VerdictCommit
from autoresearch.records.ledger import (
    LEDGER_ONLY_KINDS,
)
from autoresearch.text import to_one_line


def is_ledger_only(verdict: Verdict) -> bool:
    """Whether nothing of this proposal ran, so that it gets no commit."""
    evidence = verdict.evidence
    return isinstance(evidence, Failure) and evidence.kind in LEDGER_ONLY_KINDS


def format_decision_trailer(verdict: Verdict) -> str:
    """The trailer `Verdict`: decision and reason."""
    if verdict.decision == "failed":
        assert isinstance(verdict.evidence, Failure)
        return f"failed: {verdict.evidence.kind}: {verdict.evidence.detail}"
    return f"{status_from_decision(verdict.decision)}: {verdict.reason}"


def format_ended_share(verdict: Verdict) -> str:
    """The trailer `Ended-at`: the share of the budget at which the run was ended."""
    if isinstance(verdict.evidence, Failure) and verdict.evidence.share is not None:
        return f"{verdict.evidence.share:.2f}"
    return ""


def format_remeasured_runs(again: Scores) -> str:
    """The trailer `Remeasured`: the champion's number, and its new scores and seeds."""
    if not again:
        return ""
    scores = " ".join(
        f"{format_all_digits(score.value)}/{score.run.seed}" for score in again
    )
    return f"{again[0].run.candidate.proposal.number} at {scores}"


def list_run_seeds(evidence: Scores | Failure) -> list[int]:
    """The seed of every run; none for a failure."""
    if isinstance(evidence, Failure):
        return []
    return [score.run.seed for score in evidence]


def format_rival(verdict: Verdict) -> str:
    """The trailer `Against`: the rival's number and its mean."""
    assert verdict.against is not None
    mean = format_all_digits(fmean(verdict.against.values))
    return f"{verdict.against.number} at {mean}"


def format_all_digits(value: float) -> str:
    """A score with all its digits, so that it can be read back from git unchanged."""
    return repr(float(value))


def escape_reason(text: str) -> str:
    """A proposer's reason, printable, and never parsed as trailers."""
    lines = [to_one_line(line) for line in text[:4000].splitlines()]
    kept = [f" {line}" if re.match(r"[A-Za-z-]+: ", line) else line for line in lines]
    return "\n".join(kept)


def commit_from_message(message: str, author: str, at: float) -> VerdictCommit:
    """The parts of an existing commit's message, to create the commit again."""
    title, _, rest = message.partition("\n")
    body = rest.rpartition("\n\n")[0].strip()
    found = tuple(git.parse_trailers(message).items())
    return VerdictCommit(title, body, found, author, at)
