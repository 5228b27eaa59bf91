"""A sandboxed process that serves one scored model, and how it can fail."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoresearch import sealed_memory
from autoresearch.errors import ExperimentFailed
from autoresearch.experiment import Device, Failure, Kind, Run
from autoresearch.measure import trainer
from autoresearch.measure.calibration import ServingTimes
from autoresearch.measure.workbench import Workbench
from autoresearch.sandbox.process import ProcessExited, SandboxedProcess
from autoresearch.sealed_memory import ProtocolError


def run_failure(run: Run, kind: Kind, detail: str) -> ExperimentFailed:
    """Make the exception for a failure of this run, with its log."""
    return ExperimentFailed(Failure(run, kind, detail, run.log))


@contextmanager
def serve_model(
    workbench: Workbench,
    run: Run,
    device: Device,
    hello: dict[str, Any],
    allowed: ServingTimes,
    *shared: int,
    lends: bool = False,
) -> Iterator[SandboxedProcess]:
    """Start a fresh process that serves the run's weights; yield it ready to answer."""
    proposal = run.candidate.proposal
    file = sealed_memory.seal_file(run.weights, "weights")
    try:
        with trainer.enter_process(
            workbench, device, "serve", proposal, lends=lends
        ) as process:
            greeting = {"mode": "serve", "device": device.device_type, **hello}
            try:
                trainer.send_greeting(process, greeting, proposal.source, file, *shared)
                expect_message(process, "ready", allowed.start_seconds)
                yield process
            except ProcessExited:
                raise explain_serving_failure(run, process) from None
    finally:
        os.close(file)


def explain_serving_failure(run: Run, process: SandboxedProcess) -> ExperimentFailed:
    """Explain why a model process exited.

    Only its own reason for a mismatch is passed on, and only before it has seen
    held-out text: other output may contain that text, and proposers read this.
    """
    for line in process.log.join_kept().decode(errors="replace").splitlines():
        if line.startswith("MISFIT ") and not process.has_seen_held_out:
            return run_failure(
                run,
                "not the model you trained",
                trainer.last_error_line(line.removeprefix("MISFIT ").encode()),
            )
    return run_failure(run, "no score", "the model could not be built and served")


def expect_message(process: SandboxedProcess, word: str, limit_seconds: float) -> None:
    """Wait for one word from the model process; raises ProtocolError for another."""
    message = process.receive_message(time.monotonic() + limit_seconds)
    if message.get("say") != word:
        raise ProtocolError(f"not {word!r}")
