"""Guests that are started before they are needed, and wait with torch imported.

On a GPU a run needs three processes, one after the other, a kept one five, and each
imports torch and its compiler for 4 to 9 seconds while the GPU idles. Here they are
started while a run trains.

Promises: a guest that waits has read nothing of any train.py and been told nothing; it
serves one run and dies with it; one that died while it waited is not given out; all die
with the night. Not covered: walls that do not keep guests apart, and machines whose
processors are what trains: `night` has no guests wait there.
"""

import re
import threading
from collections.abc import Callable

from autoresearch.experiment import Device
from autoresearch.sandbox.process import ProcessRole, SandboxedProcess

# What torch reads when it is imported, a train.py may want to set before.
SETS_ENVIRONMENT = re.compile(r"\b(?:environ(?!\.get\()|putenv|setenv)\b")


def sets_environment(source: str) -> bool:
    """Whether this train.py may set what torch reads: then torch must come after it."""
    return SETS_ENVIRONMENT.search(source) is not None


class WarmPool:
    """Guests in waiting, by slot and task."""

    def __init__(
        self, start: Callable[[Device, ProcessRole], SandboxedProcess | None]
    ) -> None:
        """start: makes one that imports ahead; None: not now."""
        self._start = start
        self._guests: dict[tuple[Device, ProcessRole], list[SandboxedProcess]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._filling = threading.Lock()  # one at a time, or two start the same one
        self._closed = False

    def refill(self, slot: Device, serving: int) -> None:
        """Have so many wait to serve, and one to train. Returns at once.

        Who was not needed for one run waits on for the next.
        """
        thread = threading.Thread(target=self._start_missing, args=(slot, serving))
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _start_missing(self, slot: Device, serving: int) -> None:
        wanted: tuple[tuple[ProcessRole, int], ...] = (("serve", serving), ("train", 1))
        with self._filling:
            for task, count in wanted:
                while self._is_short_of(slot, task, count) and self._start_one(
                    slot, task
                ):
                    pass

    def _start_one(self, slot: Device, task: ProcessRole) -> bool:
        guest = self._start(slot, task)
        if guest is None:
            return False
        with self._lock:
            if not self._closed:
                self._guests.setdefault((slot, task), []).append(guest)
                return True
        guest.kill()
        return False

    def _is_short_of(self, slot: Device, task: ProcessRole, wanted: int) -> bool:
        with self._lock:
            waiting = [g for g in self._guests.get((slot, task), []) if g.is_running]
            return not self._closed and len(waiting) < wanted

    def take_process(
        self, slot: Device, task: ProcessRole, source: str
    ) -> SandboxedProcess | None:
        """One that waits for this; None: there is none that this train.py could use."""
        if sets_environment(source):
            return None
        with self._lock:
            guests = self._guests.get((slot, task), [])
            while guests:
                guest = guests.pop(0)
                if guest.is_running:
                    return guest
                guest.kill()
        return None

    def list_pids(self) -> set[int]:
        """The processes of all that wait."""
        with self._lock:
            guests = [guest for group in self._guests.values() for guest in group]
        return {pid for guest in guests for pid in guest.list_pids()}

    def close(self) -> None:
        """Send everybody home."""
        with self._lock:
            self._closed = True
        for thread in self._threads:
            thread.join()
        for guests in self._guests.values():
            while guests:
                guests.pop().kill()
