"""Monitor a GPU's health while a run trains, by samples of the harness.

Not covered: events between two samples, and runs that end before the first.
"""

import threading
from collections.abc import Callable
from types import TracebackType

from autoresearch.devices import nvml
from autoresearch.devices.nvml import GpuHealth, NvmlQuery
from autoresearch.experiment import Facts

EVERY_SECONDS = 2.0
MAX_SAMPLES = 10_000  # then every second one is dropped


class GpuMonitor:
    """Samples a GPU's health while the context is open."""

    def __init__(self, ask: NvmlQuery | None, pids: Callable[[], set[int]]) -> None:
        self._ask = ask
        self._pids = pids
        self._own_pids: set[int] = set()
        self._samples: list[GpuHealth] = []
        self._closing = threading.Event()
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
        self._closing.set()
        if self._ask is not None:
            self._thread.join()

    def _sample_loop(self) -> None:
        assert self._ask is not None
        while not self._closing.wait(EVERY_SECONDS):
            health = nvml.read_health(self._ask)
            # Read after the driver, so that the pids it reports exist by now.
            self._own_pids |= self._pids()
            self._samples.append(health)
            if len(self._samples) > MAX_SAMPLES:
                del self._samples[1::2]

    @property
    def health_summary(self) -> Facts:
        """The summary for the ledger; empty without samples."""
        return tuple(nvml.summarize_health(self._samples).items())

    @property
    def interference(self) -> str | None:
        """What may have slowed the run down from outside; None: nothing was seen."""
        return nvml.find_interference(self._samples, self._own_pids)
