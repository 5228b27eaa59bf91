"""Pools: where runs happen. In this process, or one per device of this machine.

A pool knows nothing of experiments: it calls a piece of work with a device slot and
hands back what it returned. What the work raises, `next` raises.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from autoresearch.cage import Slot

T = TypeVar("T")
Work = Callable[[Slot], T]


class Pool(Protocol[T]):
    """Runs work on free slots and hands back results as they finish."""

    @property
    def free(self) -> int:
        """How many more pieces of work can start now."""
        ...

    def submit(self, work: Work[T]) -> None:
        """Start work on a free slot."""
        ...

    def next(self) -> T | None:
        """Whichever piece finishes first; None when there is none to wait for."""
        ...
