"""The values an experiment passes through, in order.

    Proposal -> Candidate -> Run -> Score -> Verdict

Each contains the one before it, so a Verdict holds everything and a step needs only its
argument. All are frozen: a step makes the next value and never edits the last one. This
file contains values only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "refused",  # a constraint of program.md, or not Python
    "duplicate",  # the same code from the same parent was tried before
    "crash",
    "out of memory",
    "diverged",  # weights that are not finite
    "timeout",  # start-up, training or evaluation exceeded its limit
    "too early",  # submitted before the budget was used
    "no score",  # exited without submitting, or the model could not be served
    "not the model you trained",
    "cheat",  # the audit contradicts the claims
    "ended early",  # pruned by its learning curve: the only kind that is a discard
]
Decision = Literal[
    "keep",
    "discard",
    "unresolved",  # a discard that may be better than the champion, unproven
    "failed",
]
Status = Literal["keep", "discard", "failed"]  # results.tsv, trailers and JSON

# What train.py derived from its constants (width, depth, parameters, tokens, ...).
# Untrusted: shown and stored, never used for decisions.
Facts = tuple[tuple[str, float | int | str], ...]
HUMAN_AUTHOR = "human"  # the author of a lab's first baseline only
HARNESS_AUTHOR = "autoresearch"  # the author of runs that the loop repeats
Curve = tuple[tuple[float, float], ...]  # (share of the budget, loss), oldest first


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change to try."""

    number: int | None  # None until the ledger admits it; 0 is the baseline
    title: str
    source: str  # the whole new train.py, not a patch
    parent: str  # blob of the train.py it starts from; "" for the baseline
    author: str  # in the proposer grammar: "search", "human:ada", "script:FILE", ...
    reason: str = ""
    program: str = ""  # blob of the program.md that its proposer read
    refused: str = ""  # why it must not run, if its proposer found out already


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposal that passed the checks and is stored in git."""

    proposal: Proposal
    blob: str  # git's id of the train.py that will run


@dataclass(frozen=True, slots=True)
class PruneDecision:
    """Why a run may end before its budget is used."""

    progress: float  # share of its budget
    predicted: float  # final score
    error: float  # standard error of the prediction
    bar: float  # what it had to beat

    @property
    def reason(self) -> str:
        """For the ledger."""
        return (
            f"ended early at {self.progress:.0%}: on course for "
            f"{self.predicted:.6g} ± {self.error:.2g}, to beat {self.bar:.6g}"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One training of a candidate that submitted weights within its budget."""

    candidate: Candidate
    seed: int
    seconds: float  # from sending the data to receiving the weights
    startup_seconds: float
    memory_gb: float  # peak, of the whole process tree (or of the GPU)
    weights: Path  # safetensors, private to the harness
    facts: Facts
    log: Path
    curve: Curve = ()  # the losses it reported
    schedule: bool = False  # whether its change touches the schedule
    spared: PruneDecision | None = None  # pruned but for a random exemption
    health: Facts = ()  # of the GPU while it trained, measured by the harness
    harm: str | None = None  # what may have slowed it down from outside

    @property
    def tokens_per_second(self) -> float | None:
        """By its own token count; None: it reports none."""
        tokens = dict(self.facts).get("tokens")
        if not isinstance(tokens, int | float) or self.seconds <= 0:
            return None
        return tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Score:
    """What the evaluator measured of one run."""

    run: Run
    value: float
    error: float  # standard error of the audit's correction; 0 without an audit
    seconds: float  # spent evaluating
    ended_at: float | None = None  # seconds since 1970, at its end; None: unknown
    holdout: float | None = None  # on the sealed third split; None: not scored there


@dataclass(frozen=True, slots=True)
class Failure:
    """How far an experiment got, and why it failed. It has no metric."""

    reached: Proposal | Candidate | Run
    kind: Kind
    detail: str  # one line, safe to print
    log: Path | None = None  # None: nothing ran
    share: float | None = None  # of its budget, if it was pruned

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
    """The train.py that a candidate has to beat."""

    number: int  # its experiment
    blob: str
    values: tuple[float, ...]  # one per run; the champion's score is their mean
    # How many of the last values came after it became champion. Only these are free of
    # selection bias, so only these estimate how good it is.
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class Noise:
    """The spread of a single run's score around its candidate's true score."""

    sd: float
    degrees: float  # of freedom
    low: float  # 95 % interval of sd, assuming normal noise
    high: float


# Why a run was made: for its own verdict, as a rerun of a champion that others are
# compared with, or to replicate a session's gain.
Occasion = Literal["verdict", "champion", "replicate"]


@dataclass(frozen=True, slots=True)
class Row:
    """One decided experiment, as views read it."""

    number: int
    title: str
    reason: str  # the proposer's
    author: str
    parent: str
    blob: str
    program: str
    series: str
    decision: Decision
    why: str  # the policy's, or what failed
    kind: Kind | None  # None: it did not fail
    value: float | None  # mean over all its runs; None: failed, or pruned
    # Its mean minus the champion's, both without seed effects, at its verdict. None: it
    # failed, or is a baseline.
    delta: float | None
    against: int | None  # the champion's experiment; None: a baseline
    runs: int
    values: tuple[float, ...]  # a champion's reruns are appended
    when: tuple[float, ...]  # seconds since 1970, at the end of each run; or empty
    seeds: tuple[int, ...]  # of each run; 0: unknown
    seconds: float  # of training, over all runs
    evaluation_seconds: float
    memory_gb: float | None  # None: no run was completed
    facts: Facts  # of the last run, as it reports them
    health: Facts  # of the GPU in the last run; or empty
    proposed_at: float
    decided_at: float
    commit: str | None  # None: in the ledger only
    log: str | None
    evidence: str
    # Unproven experiments that it builds on, without those of its champion.
    unproven_ancestors: tuple[int, ...]

    @property
    def status(self) -> Status:
        """The decision in the three words of results.tsv, trailers and JSON."""
        return status_from_decision(self.decision)


def status_from_decision(decision: Decision) -> Status:
    """Map a decision to three words: unresolved is a discard."""
    return "discard" if decision == "unresolved" else decision


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as reports read it."""

    seed: int
    occasion: Occasion
    value: float
    holdout: float | None  # None: it was not scored there
    error: float
    ended_at: float | None  # seconds since 1970, at its end; None: unknown


@dataclass(frozen=True, slots=True)
class History:
    """What a policy may know of the series so far. Never the holdout.

    Scores are without seed effects (`stats.seed_effects`), so that they are comparable.

    `replicates` and `end_times` list the same experiments in the same order: every
    experiment of this series that has a score, oldest first, champions included.
    """

    champion: Champion | None  # None: the baseline is not measured yet
    replicates: tuple[tuple[float, ...], ...] = ()  # scores, run by run in seed order
    end_times: tuple[tuple[float, ...], ...] = ()  # Unix time of each run; or empty
    experiment_count: int = 0  # decided in this series, without the baseline
    former_champions: tuple[Champion, ...] = ()  # before this one, newest last
    near_misses: tuple[int, ...] = ()  # numbers of near misses
    # This series' decided experiments, oldest first, possibly with failures. Needed by
    # policies that let a proposal start from a train.py that is likely better than the
    # champion, before that is proven.
    rows: tuple[Row, ...] = ()
    change: "CodeSizeChange | None" = None  # of the candidate; None: unknown
    # Noise of one score here. None: estimate it from `replicates`
    # (`policies.estimate_score_noise`).
    noise: Noise | None = None


@dataclass(frozen=True, slots=True)
class CodeSizeChange:
    """Difference of a candidate's train.py to the champion's, in lines of code."""

    added_lines: int
    removed_lines: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, the reason in one sentence, and its evidence."""

    decision: Decision
    reason: str
    evidence: Scores | Failure
    against: Champion | None = None  # None: the baseline, which has no rival
    # Its mean minus the rival's, without seed effects; None: taken from the scores.
    delta: float | None = None

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


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a run may use."""

    device_type: str = "cpu"  # as train.py sees it: "cpu", "cuda" or "mps"
    index: int | None = None  # of the GPU on this machine; None: no choice
    threads: int = 1
    uuid: str = ""  # of that GPU; its index inside the sandbox differs
    memory_gb: float | None = None  # of that GPU
    device_file: str = ""  # of an AMD GPU
