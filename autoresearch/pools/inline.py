"""One run at a time, in this process: for tests, laptops and breakpoints."""

from collections import deque
from collections.abc import Sequence

from autoresearch.experiment import Device, Score
from autoresearch.measure.messages import RunRequest, RunResult
from autoresearch.pools import RunWorker


class InlinePool:
    """A pool of one device, which works only when asked for the next result."""

    capacity = 1
    has_result = False

    def __init__(self, work: RunWorker, devices: Sequence[Device]) -> None:
        self._work, self._device = work, devices[0]
        self._waiting: deque[RunRequest] = deque()

    @property
    def free_count(self) -> int:
        """One, unless something is waiting."""
        return 1 - len(self._waiting)

    def submit(self, request: RunRequest) -> None:
        """Remember the request; `next` will carry it out."""
        assert self.free_count, "the one device is taken"
        self._waiting.append(request)

    def next_result(self) -> RunResult | None:
        """Carry out the waiting request."""
        if not self._waiting:
            return None
        return self._work(self._waiting.popleft(), self._device)

    def release(self, score: Score) -> None:
        """Delete what is kept of a run."""
        self._work.release(score)
