"""`ablate`: what is each change in the champion worth now, and which can go?

Every step from the baseline to the champion is taken out alone (a three-way merge), and
what is left is tried like any other proposal: numbered, trained on the champion's
seeds, decided by the night's policy. A removal that is shown not to be worse by more
than its lines cost becomes champion, and the rest is taken out of that one. What has
its runs already, the baseline for one, is not run again.

Not covered: two changes that only matter together; a step that others were built on
cannot be taken out alone, and is named as such.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from autoresearch.errors import ExperimentFailed, NotReady, RunStopped
from autoresearch.experiment import Decision, History, Proposal, Row, Scores
from autoresearch.lab import constraints
from autoresearch.lab.folder import Lab
from autoresearch.policies import NextRun
from autoresearch.policies.base import OverridePolicy
from autoresearch.proposers.prefetch import rebase_proposal
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.run.dispatcher import Dispatcher, open_trial
from autoresearch.run.session import Session
from autoresearch.run.verdicts import record_trial, trial_from_refusal
from autoresearch.sandbox.process import StopFlag
from autoresearch.stats import noise
from autoresearch.text import format_exact, to_one_line

AUTHOR = "ablate"


@dataclass(frozen=True, slots=True)
class AblationResult:
    """One change, and what became of the champion without it."""

    step: int  # the experiment that brought the change
    title: str
    experiment: int | None  # the one without it; None: it cannot be taken out alone
    worth: float | None  # what it brings now, positive is better; None: not measured
    low: float | None  # 95 % interval; None: the noise is not known
    high: float | None
    runs: int
    decision: Decision | None  # "keep": the champion is better off without
    why: str

    def to_json(self) -> dict[str, object]:
        """One line of `ablate --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class MinimumRunsRule:
    """Gives every candidate, and the champion, this many runs in turn."""

    runs: int

    def __call__(self, scores: Scores, history: History) -> NextRun | None:
        """The next run; None when both have their runs."""
        champion = history.champion
        if champion is not None and len(champion.values) < self.runs:
            return "champion"
        return "candidate" if len(scores) < self.runs else None


def ablate(lab: Lab, runs: int, stop: StopFlag) -> Iterator[AblationResult]:
    """Take each change out alone, the newest first; one result at a time."""
    with session.open_session(
        lab, session.SessionOptions(proposers=("mailbox",)), stop
    ) as (
        found,
        _,
    ):
        policy = OverridePolicy(found.policy, MinimumRunsRule(runs))
        yield from ablate_steps(replace(found, policy=policy), runs)


def ablate_steps(found: Session, runs: int) -> Iterator[AblationResult]:
    """The same in an open session. A new champion is gone on from."""
    ledger, done, dispatcher = found.recorder.ledger, set[int](), Dispatcher(found)
    while (step := find_next_step(ledger, done)) is not None:
        done.add(step.number)
        proposal = build_removal(ledger, step)
        if proposal is None:
            why = "later changes touch the same lines: it cannot be taken out alone"
            yield build_unmeasured(step, why)
            continue
        before, twin = ledger.champion, find_measured_twin(ledger, proposal)
        assert before is not None, "what is ablated is the champion"
        if twin is not None and min(twin.runs, len(before.values)) >= runs:
            yield replace(
                estimate_worth(ledger, step, before.number, twin), decision=None
            )
            continue
        proposal = found.recorder.admit_proposal(proposal)
        try:
            candidate = found.recorder.store_candidate(proposal, again=twin is not None)
        except ExperimentFailed as failed:
            row = record_trial(found, trial_from_refusal(proposal, failed.failure))
            yield build_unmeasured(step, row.why, row)
            continue
        trial = open_trial(found, candidate)
        trial.finished_runs = ()  # every run goes to its end
        try:
            row = record_trial(found, dispatcher.run_alone(trial))
        except RunStopped:
            return
        yield estimate_worth(ledger, step, before.number, row)


def find_next_step(ledger: Ledger, done: set[int]) -> Row | None:
    """The newest change of the champion that was not taken out yet."""
    champion = ledger.champion
    if champion is None:
        raise NotReady("there is no champion here yet. Next: autoresearch run")
    line = trace_lineage(ledger, champion.blob)
    return next((row for row in reversed(line) if row.number not in done), None)


def trace_lineage(ledger: Ledger, blob: str) -> list[Row]:
    """Every change between the baseline and a train.py, the oldest first."""
    by_blob: dict[str, Row] = {}
    for row in ledger.load_rows():
        if row.series == ledger.series and row.values:
            by_blob.setdefault(row.blob, row)  # the first to bring it
    line: list[Row] = []
    while blob in by_blob:
        row = by_blob.pop(blob)
        if row.parent:
            line.append(row)
        blob = row.parent
    return line[::-1]


def build_removal(ledger: Ledger, step: Row) -> Proposal | None:
    """The champion's train.py without one change; None where later ones overlap it."""
    champion = ledger.champion
    assert champion is not None, "somebody brought the change"
    back = Proposal(
        None,
        f"without {step.number}: {step.title}"[:200],
        ledger.load_source(step.parent),
        step.blob,
        AUTHOR,
        f"What is the change of experiment {step.number} worth now?",
    )
    if step.blob == champion.blob:
        return back
    return rebase_proposal(ledger, back, champion.blob)


def find_measured_twin(ledger: Ledger, proposal: Proposal) -> Row | None:
    """The experiment that was this very program, with its scores; None: it is new."""
    code = constraints.fingerprint_code(proposal.source)
    number = ledger.find_same_code(code, proposal.parent, None)
    row = None if number is None else ledger.load_row(number)
    return row if row is not None and row.values else None


def build_unmeasured(step: Row, why: str, row: Row | None = None) -> AblationResult:
    """A change of which nothing new is known."""
    number = None if row is None else row.number
    return AblationResult(step.number, step.title, number, *(None,) * 3, 0, None, why)


def estimate_worth(
    ledger: Ledger, step: Row, champion: int, row: Row
) -> AblationResult:
    """What a change is worth: the champion's mean against the mean without it."""
    if not row.values:
        return build_unmeasured(step, row.why, row)
    known = queries.load_evidence(ledger)
    fair = {one.number: one for one in known.adjust_rows()}
    best, less = fair[champion], fair[row.number]
    worth, low, high = (less.value or 0.0) - (best.value or 0.0), None, None
    if not ledger.lower_is_better:
        worth = -worth
    if known.effects.noise is not None:
        better = ledger.lower_is_better
        found = noise.estimate_mean_difference(
            best.values, less.values, known.effects.noise, lower_is_better=better
        )
        worth, low, high = found.gain, found.low, found.high
    return AblationResult(
        *(step.number, step.title, row.number, worth, low, high),
        *(row.runs, row.status, row.why),
    )


def format_ablation(found: AblationResult) -> str:
    """One change for people."""
    title = to_one_line(found.title)
    if found.worth is None:
        return f"{found.step:>4} {'':<38} {title}: {to_one_line(found.why)}"
    worth = f"worth {format_exact(found.worth, '+')}"
    if found.low is not None and found.high is not None:
        worth += f" ({format_exact(found.low, '+')} to {format_exact(found.high, '+')})"
    gone = "   removed" if found.decision == "keep" else ""
    return f"{found.step:>4} {worth:<38} {title}{gone}"
