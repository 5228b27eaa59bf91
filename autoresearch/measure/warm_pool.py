"""Processes that are started before they are needed, with torch imported.

On a GPU a run needs three processes, one after the other, a kept one five, and each
imports torch and its compiler for 4 to 9 seconds while the GPU idles. Here they are
started while a run trains.

Promises: a warm process has read no train.py and received no message; it serves one run
and ends with it; one that died in the pool is not given out; all end with the session.
Not covered: sandboxes that do not isolate processes from each other, and machines that
train on the CPU: `run.session` uses no warm pool there.
"""

import re
import threading
from collections.abc import Callable

from autoresearch.experiment import Device
from autoresearch.sandbox.process import ProcessRole, SandboxedProcess

# A train.py may set variables that torch reads when it is imported.
SETS_ENVIRONMENT = re.compile(r"\b(?:environ(?!\.get\()|putenv|setenv)\b")


def sets_environment(source: str) -> bool:
    """Whether this train.py may set variables: then torch must be imported after it."""
    return SETS_ENVIRONMENT.search(source) is not None


class WarmPool:
    """Started processes, by device and task."""

    def __init__(
        self, start: Callable[[Device, ProcessRole], SandboxedProcess | None]
    ) -> None:
        """start: starts one that imports ahead; it returns None if it cannot now."""
        self._start = start
        self._processes: dict[tuple[Device, ProcessRole], list[SandboxedProcess]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._filling = threading.Lock()  # one at a time, or two start the same one
        self._closed = False

    def refill(self, device: Device, serving: int) -> None:
        """Keep `serving` processes ready to serve, and one to train. Returns at once.

        Processes that one run did not need stay for the next.
        """
        thread = threading.Thread(target=self._start_missing, args=(device, serving))
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _start_missing(self, device: Device, serving: int) -> None:
        wanted: tuple[tuple[ProcessRole, int], ...] = (("serve", serving), ("train", 1))
        with self._filling:
            for task, count in wanted:
                while self._lacks(device, task, count) and self._start_one(
                    device, task
                ):
                    pass

    def _start_one(self, device: Device, task: ProcessRole) -> bool:
        process = self._start(device, task)
        if process is None:
            return False
        with self._lock:
            if not self._closed:
                self._processes.setdefault((device, task), []).append(process)
                return True
        process.kill()
        return False

    def _lacks(self, device: Device, task: ProcessRole, wanted: int) -> bool:
        with self._lock:
            processes = self._processes.get((device, task), [])
            running = sum(process.is_running for process in processes)
            return not self._closed and running < wanted

    def take_process(
        self, device: Device, task: ProcessRole, source: str
    ) -> SandboxedProcess | None:
        """Take a process for this task; None: none that this train.py can use."""
        if sets_environment(source):
            return None
        with self._lock:
            processes = self._processes.get((device, task), [])
            while processes:
                process = processes.pop(0)
                if process.is_running:
                    return process
                process.kill()
        return None

    def list_pids(self) -> set[int]:
        """List the pids of all processes of the pool."""
        with self._lock:
            groups = list(self._processes.values())
            processes = [process for group in groups for process in group]
        return {pid for process in processes for pid in process.list_pids()}

    def close(self) -> None:
        """Kill all processes of the pool."""
        with self._lock:
            self._closed = True
        for thread in self._threads:
            thread.join()
        for processes in self._processes.values():
            while processes:
                processes.pop().kill()
