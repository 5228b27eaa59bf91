"""A sandboxed process that serves one scored model, and how it can fail."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoresearch import sealed_memory
from autoresearch.errors import Failed
from autoresearch.experiment import Failure, Kind, Run, Slot
from autoresearch.measure import trainer
from autoresearch.measure.calibration import Pace
from autoresearch.measure.workbench import Workbench
from autoresearch.sandbox.process import ProcessExited, SandboxedProcess
from autoresearch.sealed_memory import ProtocolError


def failed(run: Run, kind: Kind, detail: str) -> Failed:
    """A failure of this run, with its log."""
    return Failed(Failure(run, kind, detail, run.log))


@contextmanager
def model(
    bench: Workbench,
    run: Run,
    slot: Slot,
    hello: dict[str, Any],
    allowed: Pace,
    *shared: int,
    lends: bool = False,
) -> Iterator[SandboxedProcess]:
    """A fresh guest that serves the run's weights, ready to answer."""
    proposal = run.candidate.proposal
    file = sealed_memory.seal_file(run.weights, "weights")
    try:
        with trainer.entered(bench, slot, "serve", proposal, lends=lends) as guest:
            greeting = {"mode": "serve", "device": slot.device, **hello}
            try:
                trainer.greet(guest, greeting, proposal.source, file, *shared)
                expect(guest, "ready", allowed.start_seconds)
                yield guest
            except ProcessExited:
                raise not_served(run, guest) from None
    finally:
        os.close(file)


def not_served(run: Run, guest: SandboxedProcess) -> Failed:
    """Why a model guest left. Only its own reason for not fitting is passed on:

    everything else it prints may hold validation text, and a proposer reads this.
    """
    for line in guest.log.join_kept().decode(errors="replace").splitlines():
        if line.startswith("MISFIT ") and not guest.has_seen_held_out:
            return failed(
                run,
                "not the model you trained",
                trainer.last_line(line.removeprefix("MISFIT ").encode()),
            )
    return failed(run, "no score", "the model could not be built and served")


def expect(guest: SandboxedProcess, word: str, limit_seconds: float) -> None:
    """Wait for one word from the model guest."""
    message = guest.receive_message(time.monotonic() + limit_seconds)
    if message.get("say") != word:
        raise ProtocolError(f"not {word!r}")
