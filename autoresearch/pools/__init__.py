"""Where runs happen: in this process, or one per device of this machine.

A pool knows nothing of experiments: it passes requests to a worker and returns the
results. What the worker raises, `next_result` raises.
"""

from typing import Protocol

from autoresearch.experiment import Device, Score
from autoresearch.measure.messages import RunLost, RunRequest, RunResult


class RunWorker(Protocol):
    """Carries out requests on a device (`measure.worker.Worker`)."""

    def __call__(self, request: RunRequest, device: Device) -> RunResult: ...

    def release(self, score: Score) -> None: ...


class Pool(Protocol):
    """Runs requests on free devices and returns results as they end."""

    @property
    def capacity(self) -> int:
        """How many runs there can be at once; may change as machines come and go."""
        ...

    @property
    def free_count(self) -> int:
        """How many more requests can start now."""
        ...

    @property
    def has_result(self) -> bool:
        """Whether `next_result` returns at once."""
        ...

    def submit(self, request: RunRequest) -> None:
        """Start a request on a free device."""
        ...

    def next_result(self) -> RunResult | RunLost | None:
        """Wait for the request that ends first; None when none is under way."""
        ...

    def release(self, score: Score) -> None:
        """Delete the weights of a run that has its verdict."""
        ...
