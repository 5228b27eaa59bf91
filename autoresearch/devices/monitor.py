"""A GPU's health while a run trains: sampled by the harness, beside the run.

Not covered: what happens between two samples, and runs that end before the first.
"""

import threading
from collections.abc import Callable
from types import TracebackType

from autoresearch.devices import nvml
from autoresearch.devices.nvml import GpuHealth, NvmlQuery
from autoresearch.experiment import Facts

EVERY_SECONDS = 2.0
MAX_SAMPLES = 10_000  # then the newest of each pair goes


class GpuMonitor:
    """Asks a GPU how it is, as long as the context lasts."""

    def __init__(self, ask: NvmlQuery | None, pids: Callable[[], set[int]]) -> None:
        self._ask = ask
        self._pids = pids
        self._ours: set[int] = set()
        self._samples: list[GpuHealth] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample_loop, daemon=True)

    def __enter__(self) -> "GpuMonitor":
        if self._ask is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._ask is not None:
            self._thread.join()

    def _sample_loop(self) -> None:
        assert self._ask is not None
        while not self._over.wait(EVERY_SECONDS):
            found = nvml.read_health(self._ask)
            # After the driver: what it names has begun by now.
            self._ours |= self._pids()
            self._samples.append(found)
            if len(self._samples) > MAX_SAMPLES:
                del self._samples[1::2]

    @property
    def health_summary(self) -> Facts:
        """What the ledger keeps of it; empty where nobody could be asked."""
        return tuple(nvml.summarize_health(self._samples).items())

    @property
    def interference(self) -> str | None:
        """What may have slowed the run down that is not its own doing."""
        return nvml.find_interference(self._samples, self._ours)
