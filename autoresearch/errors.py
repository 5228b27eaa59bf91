"""All errors, in one tree.

    LabError            the user's files, settings or machine: what, where, what next
    ├── LabBusy         another run holds this lab
    └── NotReady        nothing is wrong, but it is too early (exit code 3)
    ExperimentFailed    an experiment failed: caught, and recorded as its verdict
    RunStopped          the user stopped the session while a run was under way

Everything else is a bug in AutoResearch and is left to crash.
"""

from autoresearch.experiment import Failure


class LabError(Exception):
    """The user can fix this; the message says what, where and what to type next."""


class LabBusy(LabError):
    """Another `autoresearch run` holds the lab."""


class NotReady(LabError):
    """What was requested does not exist yet."""


class ExperimentFailed(Exception):
    """An experiment ended without a score. Carries the Failure to record."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure = failure


class RunStopped(Exception):
    """A run was ended because the user stopped the session."""
