"""The values an experiment passes through, in order.

    Proposal -> Candidate -> Run -> Score -> Verdict

Each holds the one before it, so a Verdict is the whole story and no step needs more
than its argument. All are frozen: a step makes the next value and never edits the
last one. Nothing in this file does any work.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "refused",  # a constraint of program.md, or not Python
    "duplicate",  # the same code after the same parent was tried before
    "crash",
    "out of memory",
    "diverged",  # weights that are not finite
    "timeout",  # start-up, clock or evaluation ran past its limit
    "too early",  # submitted before the budget was used
    "no score",  # exited without submitting, or the model could not be served
    "not the model you trained",
    "cheat",  # the audit contradicts the claims
]
Decision = Literal["keep", "discard", "failed"]

# What train.py resolved its constants to (width, depth, parameters, tokens, ...).
# Untrusted: shown and stored, never used to decide.
Facts = tuple[tuple[str, float | int | str], ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change somebody would like to try."""

    number: int | None  # None until the ledger admits it; 0 is the baseline
    title: str
    source: str  # the whole new train.py, not a patch: nothing to misapply
    parent: str  # blob of the train.py it starts from; "" for the baseline
    author: str  # in the proposer grammar: "search", "human:ada", "script:FILE", ...
    reason: str = ""
    program: str = ""  # blob of the program.md its proposer read
    refused: str = ""  # why it must not run, where its proposer found out first


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal that passed the checks and is written into git."""

    proposal: Proposal
    blob: str  # git's name for the train.py that will run


@dataclass(frozen=True, slots=True)
class Run:
    """One training of a candidate that handed in weights inside its clock."""

    candidate: Candidate
    seed: int
    seconds: float  # from handing over the data to receiving the weights
    startup_seconds: float
    memory_gb: float  # peak, of the whole process tree (or of the GPU)
    weights: Path  # safetensors, private to the harness
    facts: Facts
    log: Path


@dataclass(frozen=True, slots=True)
class Score:
    """What the evaluator measured of one run."""

    run: Run
    value: float
    error: float  # standard error of the audit's correction; 0 where nothing is drawn
    seconds: float  # spent evaluating


@dataclass(frozen=True, slots=True)
class Failure:
    """How far an experiment got before it ended, and why. It has no metric."""

    reached: Proposal | Candidate | Run
    kind: Kind
    detail: str  # one line, safe to print
    log: Path | None = None  # None: nothing ran

    @property
    def proposal(self) -> Proposal:
        """The idea that failed."""
        match self.reached:
            case Proposal() as proposal:
                return proposal
            case Candidate(proposal=proposal):
                return proposal
            case Run(candidate=candidate):
                return candidate.proposal


Scores = tuple[Score, ...]  # one per run, oldest first


@dataclass(frozen=True, slots=True)
class Champion:
    """What a candidate has to beat."""

    number: int  # its experiment
    blob: str
    values: tuple[float, ...]  # one per run; the champion's score is their mean


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, in one sentence, and the evidence it rests on."""

    decision: Decision
    reason: str
    evidence: Scores | Failure
    against: Champion | None = None  # None: the baseline, which has no rival

    @property
    def proposal(self) -> Proposal:
        """The idea this verdict is about."""
        if isinstance(self.evidence, Failure):
            return self.evidence.proposal
        return self.evidence[0].run.candidate.proposal

    @property
    def values(self) -> tuple[float, ...]:
        """The score of every run; empty when it failed."""
        if isinstance(self.evidence, Failure):
            return ()
        return tuple(score.value for score in self.evidence)
