"""Everything that can go wrong, in one tree.

    LabError      the human's files, settings or machine: what, where, what to type next
    ├── Busy      another run holds this lab
    └── NotYet    nothing is wrong, but it is too soon (exit code 3)
    Failed        the experiment in hand went wrong: caught in `loop` and recorded
    Stopped       a human asked the night to stop while a run was under way

Everything else is a bug in AutoResearch and is left to crash.
"""

from autoresearch.experiment import Failure


class LabError(Exception):
    """The human can fix this; the message says what, where and what to type next."""


class LabBusy(LabError):
    """Another `autoresearch run` holds the lab."""


class NotReady(LabError):
    """What was asked for does not exist yet."""


class ExperimentFailed(Exception):
    """An experiment ended without a score. Carries the Failure to write down."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure = failure


class RunStopped(Exception):
    """The run in hand was cut off because a human stopped the night."""
