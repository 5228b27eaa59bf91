"""`autoresearch ablate`: what is each of the champion's changes worth now?

Each step from the baseline to the champion is removed alone (a three-way merge), and
the result is tried like any other proposal: numbered, trained on the champion's seeds,
decided by the lab's policy. A removal that is shown to lose no more than its lines cost
becomes champion, and the next step is removed from that one. Programs that have enough
runs already, such as the baseline, are not run again.

Not covered: changes that only matter together. A step that later ones were built on
cannot be removed alone; it is listed as such.
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
    """One change, and how the champion does without it."""

    step: int  # the experiment that introduced the change
    title: str
    experiment: int | None  # the one without it; None: it cannot be removed alone
    worth: float | None  # what it gains now, positive is better; None: not measured
    low: float | None  # 95 % interval; None: the noise is not known
    high: float | None
    runs: int  # of the experiment without it
    decision: Decision | None  # "keep": removed from the champion; None: not decided
    why: str

    def to_json(self) -> dict[str, object]:
        """The contract of `ablate --json`: one such line a change."""
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
    """Remove each change alone, the newest first, with at least `runs` runs each.

    Yields each result as it is measured. Raises NotReady without a champion.
    """
    options = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, options, stop) as (opened, _):
        policy = OverridePolicy(opened.policy, MinimumRunsRule(runs))
        yield from ablate_steps(replace(opened, policy=policy), runs)


def ablate_steps(opened: Session, runs: int) -> Iterator[AblationResult]:
    """`ablate` in an open session. After a removal, the new champion is ablated."""
    ledger, done, dispatcher = opened.recorder.ledger, set[int](), Dispatcher(opened)
    while (step := find_next_step(ledger, done)) is not None:
        done.add(step.number)
        proposal = build_removal(ledger, step)
        if proposal is None:
            why = "later changes touch the same lines, so it cannot be removed alone"
            yield build_unmeasured(step, why)
            continue
        champion, twin = ledger.champion, find_measured_twin(ledger, proposal)
        assert champion is not None, "there is a step, so there is a champion"
        if twin is not None and min(twin.runs, len(champion.values)) >= runs:
            yield replace(
                estimate_worth(ledger, step, champion.number, twin), decision=None
            )
            continue
        proposal = opened.recorder.admit_proposal(proposal)
        try:
            candidate = opened.recorder.store_candidate(
                proposal, again=twin is not None
            )
        except ExperimentFailed as failed:
            row = record_trial(opened, trial_from_refusal(proposal, failed.failure))
            yield build_unmeasured(step, row.why, row)
            continue
        trial = open_trial(opened, candidate)
        trial.finished_runs = ()  # without learning curves to compare, none ends early
        try:
            row = record_trial(opened, dispatcher.run_alone(trial))
        except RunStopped:
            return
        yield estimate_worth(ledger, step, champion.number, row)


def find_next_step(ledger: Ledger, done: set[int]) -> Row | None:
    """The champion's newest change that was not removed yet; None: that was all."""
    champion = ledger.champion
    if champion is None:
        raise NotReady("there is no champion yet. Next: autoresearch run")
    lineage = trace_lineage(ledger, champion.blob)
    return next((row for row in reversed(lineage) if row.number not in done), None)


def trace_lineage(ledger: Ledger, blob: str) -> list[Row]:
    """Every change from the baseline to a train.py, the oldest first."""
    by_blob: dict[str, Row] = {}
    for row in ledger.load_rows():
        if row.series == ledger.series and row.values:
            by_blob.setdefault(row.blob, row)  # the first experiment with this source
    lineage: list[Row] = []
    while blob in by_blob:
        row = by_blob.pop(blob)
        if row.parent:
            lineage.append(row)
        blob = row.parent
    return lineage[::-1]


def build_removal(ledger: Ledger, step: Row) -> Proposal | None:
    """The champion's train.py without one change; None where later ones overlap it."""
    champion = ledger.champion
    assert champion is not None, "there is a step, so there is a champion"
    removal = Proposal(
        None,
        f"without {step.number}: {step.title}"[:200],
        ledger.load_source(step.parent),
        step.blob,
        AUTHOR,
        f"What is the change of experiment {step.number} worth now?",
    )
    if step.blob == champion.blob:
        return removal
    return rebase_proposal(ledger, removal, champion.blob)


def find_measured_twin(ledger: Ledger, proposal: Proposal) -> Row | None:
    """The scored experiment with this very program; None: it is new."""
    code = constraints.fingerprint_code(proposal.source)
    number = ledger.find_same_code(code, proposal.parent, None)
    row = None if number is None else ledger.load_row(number)
    return row if row is not None and row.values else None


def build_unmeasured(step: Row, why: str, row: Row | None = None) -> AblationResult:
    """The result for a change that could not be measured."""
    number = None if row is None else row.number
    return AblationResult(step.number, step.title, number, *(None,) * 3, 0, None, why)


def estimate_worth(
    ledger: Ledger, step: Row, champion: int, row: Row
) -> AblationResult:
    """What a change is worth: the champion's mean against the mean without it (`row`).

    Scores are adjusted for seed effects. The interval needs a known noise.
    """
    if not row.values:
        return build_unmeasured(step, row.why, row)
    evidence = queries.load_evidence(ledger)
    adjusted = {each.number: each for each in evidence.adjust_rows()}
    with_it, without_it = adjusted[champion], adjusted[row.number]
    worth = (without_it.value or 0.0) - (with_it.value or 0.0)
    low, high = None, None
    if not ledger.lower_is_better:
        worth = -worth
    if evidence.effects.noise is not None:
        estimate = noise.estimate_mean_difference(
            with_it.values,
            without_it.values,
            evidence.effects.noise,
            lower_is_better=ledger.lower_is_better,
        )
        worth, low, high = estimate.gain, estimate.low, estimate.high
    return AblationResult(
        *(step.number, step.title, row.number, worth, low, high),
        *(row.runs, row.status, row.why),
    )


def format_ablation(result: AblationResult) -> str:
    """One change for people."""
    title = to_one_line(result.title)
    if result.worth is None:
        return f"{result.step:>4} {'':<38} {title}: {to_one_line(result.why)}"
    worth = f"worth {format_exact(result.worth, '+')}"
    if result.low is not None and result.high is not None:
        low, high = format_exact(result.low, "+"), format_exact(result.high, "+")
        worth += f" ({low} to {high})"
    removed = "   removed" if result.decision == "keep" else ""
    return f"{result.step:>4} {worth:<38} {title}{removed}"
