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
    """A failure of this run, with its log."""
    return ExperimentFailed(Failure(run, kind, detail, run.log))


@contextmanager
def serve_model(
    bench: Workbench,
    run: Run,
    slot: Device,
    hello: dict[str, Any],
    allowed: ServingTimes,
    *shared: int,
    lends: bool = False,
) -> Iterator[SandboxedProcess]:
    """A fresh guest that serves the run's weights, ready to answer."""
    proposal = run.candidate.proposal
    file = sealed_memory.seal_file(run.weights, "weights")
    try:
        with trainer.enter_process(
            bench, slot, "serve", proposal, lends=lends
        ) as guest:
            greeting = {"mode": "serve", "device": slot.device_type, **hello}
            try:
                trainer.send_greeting(guest, greeting, proposal.source, file, *shared)
                expect_message(guest, "ready", allowed.start_seconds)
                yield guest
            except ProcessExited:
                raise explain_serving_failure(run, guest) from None
    finally:
        os.close(file)


def explain_serving_failure(run: Run, guest: SandboxedProcess) -> ExperimentFailed:
    """Why a model guest left. Only its own reason for not fitting is passed on:

    everything else it prints may hold validation text, and a proposer reads this.
    """
    for line in guest.log.join_kept().decode(errors="replace").splitlines():
        if line.startswith("MISFIT ") and not guest.has_seen_held_out:
            return run_failure(
                run,
                "not the model you trained",
                trainer.last_error_line(line.removeprefix("MISFIT ").encode()),
            )
    return run_failure(run, "no score", "the model could not be built and served")


def expect_message(guest: SandboxedProcess, word: str, limit_seconds: float) -> None:
    """Wait for one word from the model guest."""
    message = guest.receive_message(time.monotonic() + limit_seconds)
    if message.get("say") != word:
        raise ProtocolError(f"not {word!r}")
