"""Makes the runs that are asked for, on the devices of this machine.

    RunRequest -> RunResult

The same for every pool that runs here. A run that the machine slowed down is void and
made again before anything knows what it would have scored (`void_runs`).
"""

from dataclasses import dataclass, replace

from autoresearch.errors import Failed
from autoresearch.experiment import Run, Score, Slot
from autoresearch.measure import evaluator, trainer, void_runs
from autoresearch.measure.messages import Notice, RunRequest, RunResult
from autoresearch.measure.workbench import Workbench

REPEATS_OF_VOID = 2  # of one run; then it counts, with what harmed it on record


@dataclass(frozen=True, slots=True)
class Worker:
    """One machine's way from a request to a result."""

    bench: Workbench

    def __call__(self, request: RunRequest, device: Slot) -> RunResult:
        """Carry out a request. Raises Stopped, LabError and OSError; a run that fails
        is a result."""
        bench = replace(self.bench, terms=request.terms)
        notices: list[Notice] = []
        try:
            if request.score is not None:
                outcome = evaluator.with_holdout(bench, request.score, slot=device)
            else:
                outcome = measure(bench, request, device, notices)
        except Failed as failed:
            return RunResult(request, failed.failure, device, tuple(notices))
        return RunResult(request, outcome, device, tuple(notices))

    def release(self, score: Score) -> None:
        """Delete what is kept of a run that has its verdict."""
        trainer.discard(score.run)


def measure(
    bench: Workbench, request: RunRequest, device: Slot, notices: list[Notice]
) -> Score:
    """Train once and score. Without `holdout` the weights stay until `release`."""
    run = train(bench, request, device, notices)
    try:
        score = evaluator.score(bench, run, slot=device)
        if request.holdout:
            score = evaluator.with_holdout(bench, score, slot=device)
    except BaseException:
        trainer.discard(run)
        raise
    if request.holdout:
        trainer.discard(run)
    return score


def train(
    bench: Workbench, request: RunRequest, device: Slot, notices: list[Notice]
) -> Run:
    """Train once; again where the run was void. Appends to `notices`."""
    for repeat in range(REPEATS_OF_VOID + 1):
        if repeat and request.pruner is not None:
            request.pruner.forget()
        run = trainer.train(
            bench,
            request.candidate,
            seed=request.seed,
            slot=device,
            outlook=request.pruner,
        )
        pace = run.tokens_per_second
        why = None
        if pace is not None:
            why = void_runs.void(run.harm, pace, request.paces)
        if pace is None or why is None or repeat == REPEATS_OF_VOID:
            break
        number = request.candidate.proposal.number
        notices.append(
            Notice(
                f"a run of experiment {number} was void and is repeated: {why}, and "
                f"{pace:.0f} tokens a second where the champion had "
                f"{min(request.paces):.0f}",
                f"void {number} {request.seed}",
            )
        )
    return run
