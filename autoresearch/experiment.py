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
    "ended early",  # hopeless by its learning curve: the one kind that is a discard
]
Decision = Literal[
    "keep",
    "discard",
    "unresolved",  # a discard that may be better than the champion, but is not proven
    "failed",
]
Status = Literal["keep", "discard", "failed"]  # results.tsv, trailers and JSON

# What train.py resolved its constants to (width, depth, parameters, tokens, ...).
# Untrusted: shown and stored, never used to decide.
Facts = tuple[tuple[str, float | int | str], ...]
HUMAN_AUTHOR = "human"  # author of what a lab begins with, and of nothing else
HARNESS_AUTHOR = "autoresearch"  # author of what the loop itself runs once more
Curve = tuple[tuple[float, float], ...]  # (share of the budget, loss), oldest first


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
class PruneDecision:
    """Why a run may end before its clock does."""

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
    """One training of a candidate that handed in weights inside its clock."""

    candidate: Candidate
    seed: int
    seconds: float  # from handing over the data to receiving the weights
    startup_seconds: float
    memory_gb: float  # peak, of the whole process tree (or of the GPU)
    weights: Path  # safetensors, private to the harness
    facts: Facts
    log: Path
    curve: Curve = ()  # of the losses it reported
    schedule: bool = False  # whether its change touches the schedule
    spared: PruneDecision | None = (
        None  # it would have been ended early, but for a coin
    )
    health: Facts = ()  # how the GPU was while it trained; the harness's own finding
    harm: str | None = None  # what may have slowed it down that is not its own doing

    @property
    def tokens_per_second(self) -> float | None:
        """By its own count; None where it gives none."""
        tokens = dict(self.facts).get("tokens")
        if not isinstance(tokens, int | float) or self.seconds <= 0:
            return None
        return tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Score:
    """What the evaluator measured of one run."""

    run: Run
    value: float
    error: float  # standard error of the audit's correction; 0 where nothing is drawn
    seconds: float  # spent evaluating
    ended_at: float | None = None  # seconds since 1970, at its end; None: unknown
    holdout: float | None = None  # on the sealed third split; None: not scored there


@dataclass(frozen=True, slots=True)
class Failure:
    """How far an experiment got before it ended, and why. It has no metric."""

    reached: Proposal | Candidate | Run
    kind: Kind
    detail: str  # one line, safe to print
    log: Path | None = None  # None: nothing ran
    share: float | None = None  # of its budget, where it was ended early

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
    # How many of the last values came after it was crowned. Only these are free of the
    # luck that crowned it, so only these may say how good it is.
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class Noise:
    """The spread of a single run's score around its candidate's true score."""

    sd: float
    degrees: float  # of freedom: how many independent differences it rests on
    low: float  # 95 % interval of sd, if the noise is normal
    high: float


# Why a run was made: for its own verdict, because its experiment is the champion that
# others are held against, or to replicate a night's gain.
Occasion = Literal["verdict", "champion", "replicate"]


@dataclass(frozen=True, slots=True)
class Row:
    """One decided experiment, as every view reads it."""

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
    value: float | None  # mean over all its runs; None: failed, or ended early
    # Its mean less the champion's without the luck of seeds, as it was decided. None:
    # it failed, or is a baseline.
    delta: float | None
    against: int | None  # the champion's experiment; None: a baseline
    runs: int
    values: tuple[float, ...]  # the champion's grow when it runs again
    when: tuple[float, ...]  # seconds since 1970, at the end of each run; or empty
    seeds: tuple[int, ...]  # of each run; 0: not known
    seconds: float  # trained, over all runs
    evaluation_seconds: float
    memory_gb: float | None  # None: no run came to its end
    facts: Facts  # of the last run, by its own word
    health: Facts  # of the GPU in the last run; or empty
    proposed_at: float
    decided_at: float
    commit: str | None  # None: in the ledger only
    log: str | None
    evidence: str
    unproven_ancestors: tuple[
        int, ...
    ]  # unproven experiments that it stands on, its champion's not

    @property
    def status(self) -> Status:
        """The decision in the three words of results.tsv, trailers and JSON."""
        return status_from_decision(self.decision)


def status_from_decision(decision: Decision) -> Status:
    """A decision in three words: what is unresolved is a discard."""
    return "discard" if decision == "unresolved" else decision


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as a report sees it."""

    seed: int
    occasion: Occasion
    value: float
    holdout: float | None  # None: it was not scored there
    error: float
    ended_at: float | None  # seconds since 1970, at its end; None: unknown


@dataclass(frozen=True, slots=True)
class History:
    """What a policy may know of the series so far. Never the holdout.

    Scores are without the luck of their seeds (`seeds`), so that they can be compared.

    `replicates` and `when` speak of the same experiments in the same order: every
    experiment of this series that has a score, oldest first, champion included.
    """

    champion: Champion | None  # None: nothing is measured yet, this is the baseline
    replicates: tuple[tuple[float, ...], ...] = ()  # scores, run by run in seed order
    end_times: tuple[
        tuple[float, ...], ...
    ] = ()  # seconds at the end of each run; or empty
    experiment_count: int = (
        0  # experiments decided in this series, the baseline not counted
    )
    former_champions: tuple[
        Champion, ...
    ] = ()  # the champions before this one, newest last
    near_misses: tuple[int, ...] = ()  # numbers of near misses
    # This series' decided experiments, oldest first (failures may be among them). What
    # started from what: a policy that lets a proposal start from something better than
    # the champion of record, before that is certain, cannot do without.
    rows: tuple[Row, ...] = ()
    change: "CodeSizeChange | None" = (
        None  # of the candidate in hand; None: none, or unknown
    )
    # Of a score here. None: it is what the replicates say (`policy.noise_of`).
    noise: Noise | None = None


@dataclass(frozen=True, slots=True)
class CodeSizeChange:
    """How much a candidate's train.py differs from the champion's, in lines of code."""

    added_lines: int
    removed_lines: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, in one sentence, and the evidence it rests on."""

    decision: Decision
    reason: str
    evidence: Scores | Failure
    against: Champion | None = None  # None: the baseline, which has no rival
    # Its mean less the rival's, without the luck of seeds; None: as the scores say.
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
    """A device a run may use."""

    device_type: str = "cpu"  # as train.py sees it: "cpu", "cuda" or "mps"
    index: int | None = None  # which GPU of the machine; None where there is no choice
    threads: int = 1
    uuid: str = ""  # of that GPU: a cage shows one, whose number inside is another
    memory_gb: float | None = None  # of that GPU
    device_file: str = ""  # its device file, of an AMD GPU
