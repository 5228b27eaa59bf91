"""One run at a time, in this process: for tests, laptops and breakpoints."""

from collections import deque
from collections.abc import Sequence

from autoresearch.experiment import Device, Score
from autoresearch.measure.messages import RunRequest, RunResult
from autoresearch.pools import RunWorker


class InlinePool:
    """A pool of one device, which runs a request when its result is asked for."""

    capacity = 1
    has_result = False

    def __init__(self, worker: RunWorker, devices: Sequence[Device]) -> None:
        self._worker, self._device = worker, devices[0]
        self._waiting: deque[RunRequest] = deque()

    @property
    def free_count(self) -> int:
        """One, unless a request is waiting."""
        return 1 - len(self._waiting)

    def submit(self, request: RunRequest) -> None:
        """Queue the request; `next_result` carries it out."""
        assert self.free_count, "the one device is busy"
        self._waiting.append(request)

    def next_result(self) -> RunResult | None:
        """Carry out the waiting request."""
        if not self._waiting:
            return None
        return self._worker(self._waiting.popleft(), self._device)

    def release(self, score: Score) -> None:
        """Delete the weights of a run."""
        self._worker.release(score)
