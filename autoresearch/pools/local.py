"""One run per device of this machine, at the same time."""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from autoresearch.experiment import Device, Score
from autoresearch.measure.messages import RunRequest, RunResult
from autoresearch.pools import RunWorker

POLL_SECONDS = 0.2  # how often a waiting `next_result` lets a signal through


class LocalPool:
    """A thread per device: a run is a child process, so threads are enough."""

    def __init__(self, worker: RunWorker, devices: Sequence[Device]) -> None:
        self.capacity = len(devices)
        self._worker = worker
        self._idle = list(
            reversed(devices)
        )  # a stack: the one freed last is used first
        self._busy: dict[Future[RunResult], Device] = {}
        self._threads = ThreadPoolExecutor(len(devices), thread_name_prefix="device")

    @property
    def free_count(self) -> int:
        """Idle devices."""
        return len(self._idle)

    @property
    def has_result(self) -> bool:
        """Whether a request has ended."""
        return any(future.done() for future in self._busy)

    def submit(self, request: RunRequest) -> None:
        """Start a request on an idle device."""
        assert self._idle, "every device is busy"
        device = self._idle.pop()
        self._busy[self._threads.submit(self._worker, request, device)] = device

    def next_result(self) -> RunResult | None:
        """Wait for the first request to end and free its device."""
        if not self._busy:
            return None
        done: set[Future[RunResult]] = set()
        while not done:
            done, _ = wait(self._busy, POLL_SECONDS, return_when=FIRST_COMPLETED)
        first = done.pop()
        self._idle.append(self._busy.pop(first))
        return first.result()

    def release(self, score: Score) -> None:
        """Delete the weights of a run."""
        self._worker.release(score)
