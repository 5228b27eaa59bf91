"""One run per device of this machine, at the same time."""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic

from autoresearch.cage import Slot
from autoresearch.pools import T, Work

TICK_SECONDS = 0.2  # how often a waiting `next` lets a signal through


class Local(Generic[T]):
    """A thread per slot: the work itself is a child process, so threads are enough."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._idle = list(slots)
        self._busy: dict[Future[T], Slot] = {}
        self._threads = ThreadPoolExecutor(len(slots), thread_name_prefix="slot")

    @property
    def free(self) -> int:
        """Slots with nothing to do."""
        return len(self._idle)

    def submit(self, work: Work[T]) -> None:
        """Start work on an idle slot."""
        assert self._idle, "every slot is taken"
        slot = self._idle.pop(0)
        self._busy[self._threads.submit(work, slot)] = slot

    def next(self) -> T | None:
        """Wait for the first piece of work to finish and free its slot."""
        if not self._busy:
            return None
        done: set[Future[T]] = set()
        while not done:
            done, _ = wait(self._busy, TICK_SECONDS, return_when=FIRST_COMPLETED)
        first = done.pop()
        self._idle.append(self._busy.pop(first))
        return first.result()
