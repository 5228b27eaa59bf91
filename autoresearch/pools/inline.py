"""One run at a time, in this process: for tests, laptops and breakpoints."""

from collections import deque
from typing import Generic

from autoresearch.cage import Slot
from autoresearch.pools import T, Work


class Inline(Generic[T]):
    """A pool of one slot, which works only when asked for the next result."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._waiting: deque[Work[T]] = deque()

    @property
    def free(self) -> int:
        """One, unless something is waiting."""
        return 1 - len(self._waiting)

    def submit(self, work: Work[T]) -> None:
        """Remember the work; `next` will do it."""
        assert self.free, "the one slot is taken"
        self._waiting.append(work)

    def next(self) -> T | None:
        """Do the waiting work."""
        return self._waiting.popleft()(self._slot) if self._waiting else None
