"""Carry out run requests on the devices of this machine.

    RunRequest -> RunResult

The same for every pool that runs here. A run that the machine slowed down is void and
is repeated before it is scored (`void_runs`).
"""

from dataclasses import dataclass, replace

from autoresearch.errors import ExperimentFailed
from autoresearch.experiment import Device, Run, Score
from autoresearch.measure import evaluator, trainer, void_runs
from autoresearch.measure.messages import Notice, RunRequest, RunResult
from autoresearch.measure.workbench import Workbench

MAX_VOID_REPEATS = 2  # of one run; then it counts, and the cause is on record


@dataclass(frozen=True, slots=True)
class Worker:
    """Carries out requests with the workbench of one machine."""

    workbench: Workbench

    def __call__(self, request: RunRequest, device: Device) -> RunResult:
        """Carry out a request. A run that fails is a result.

        Raises RunStopped, LabError and OSError.
        """
        workbench = replace(self.workbench, terms=request.terms)
        notices: list[Notice] = []
        try:
            if request.score is not None:
                outcome = evaluator.add_holdout_score(
                    workbench, request.score, device=device
                )
            else:
                outcome = train_and_score(workbench, request, device, notices)
        except ExperimentFailed as failed:
            return RunResult(request, failed.failure, device, tuple(notices))
        return RunResult(request, outcome, device, tuple(notices))

    def release(self, score: Score) -> None:
        """Delete the weights of a run that has its verdict."""
        trainer.discard_runs(score.run)


def train_and_score(
    workbench: Workbench, request: RunRequest, device: Device, notices: list[Notice]
) -> Score:
    """Train once and score. Unless `request.holdout`, weights stay until `release`."""
    run = train_until_valid(workbench, request, device, notices)
    try:
        score = evaluator.score_run(workbench, run, device=device)
        if request.holdout:
            score = evaluator.add_holdout_score(workbench, score, device=device)
    except BaseException:
        trainer.discard_runs(run)
        raise
    if request.holdout:
        trainer.discard_runs(run)
    return score


def train_until_valid(
    workbench: Workbench, request: RunRequest, device: Device, notices: list[Notice]
) -> Run:
    """Train once; repeat a void run. Appends to `notices`."""
    for repeat in range(MAX_VOID_REPEATS + 1):
        if repeat and request.pruner is not None:
            request.pruner.reset()
        run = trainer.train_candidate(
            workbench,
            request.candidate,
            seed=request.seed,
            device=device,
            pruner=request.pruner,
        )
        pace = run.tokens_per_second
        why = None
        if pace is not None:
            why = void_runs.find_void_reason(run.harm, pace, request.paces)
        if pace is None or why is None or repeat == MAX_VOID_REPEATS:
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
