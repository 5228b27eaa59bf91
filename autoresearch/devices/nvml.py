"""GPU health from NVML: the driver (`discovery.open_nvml`) or a recording.

What a driver does not report is None, never a guess. Not covered: other vendors.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

# NVML's bits for why a clock is not at its maximum.
SLOWDOWN_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# A power cap is normal on a desktop GPU; the other reasons mean a fault.
HARMFUL_REASONS = frozenset(SLOWDOWN_REASONS.values()) - {"software power cap"}


NvmlAnswer = int | str | tuple[int, ...] | None  # None: not supported here


class NvmlQuery(Protocol):
    """Calls one GPU's NVML functions by name, without the handle."""

    def __call__(self, name: str, *arguments: int) -> NvmlAnswer: ...


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """The health of a GPU at one moment."""

    clock_mhz: int | None  # of the multiprocessors
    power_watts: float | None
    temperature_celsius: int | None
    slowdowns: tuple[str, ...]  # why the clock is not at its highest
    ecc_errors: int | None  # uncorrected, since the driver was loaded
    compute_pids: tuple[int, ...]  # processes that compute on it


def read_health(ask: NvmlQuery) -> GpuHealth:
    """Read the health of one GPU. Function arguments and bits are NVML's."""
    reasons = as_integer(ask("nvmlDeviceGetCurrentClocksEventReasons")) or 0
    milliwatts = as_integer(ask("nvmlDeviceGetPowerUsage"))
    computing = ask("nvmlDeviceGetComputeRunningProcesses")
    return GpuHealth(
        as_integer(ask("nvmlDeviceGetClockInfo", 1)),
        None if milliwatts is None else milliwatts / 1000,
        as_integer(ask("nvmlDeviceGetTemperature", 0)),
        tuple(words for bit, words in SLOWDOWN_REASONS.items() if reasons & bit),
        as_integer(ask("nvmlDeviceGetTotalEccErrors", 1, 0)),
        computing if isinstance(computing, tuple) else (),
    )


def as_integer(answer: NvmlAnswer) -> int | None:
    """Return an answer that is a number, else None."""
    return answer if isinstance(answer, int) else None


def find_interference(
    samples: Sequence[GpuHealth], own_pids: Collection[int]
) -> str | None:
    """Say what may have slowed a run down from outside, or None.

    own_pids: all processes the run ever had. If the driver reports pids of another
    namespace (a container), one unknown pid is assumed to be the run.
    """
    harmed = {w for sample in samples for w in sample.slowdowns} & HARMFUL_REASONS
    if harmed:
        return ", ".join(sorted(harmed))
    seen = {pid for sample in samples for pid in sample.compute_pids}
    others = seen - set(own_pids)
    if len(others) > (1 if others == seen else 0):
        return f"another process computed on the GPU (pid {min(others)})"
    return None


def summarize_health(samples: Sequence[GpuHealth]) -> dict[str, float | str]:
    """What a row of the ledger keeps of a run's samples."""
    busy = sorted(s.clock_mhz for s in samples if s.clock_mhz is not None)
    watts = [s.power_watts for s in samples if s.power_watts is not None]
    heat = [s.temperature_celsius for s in samples if s.temperature_celsius is not None]
    if not samples:
        return {}
    summary: dict[str, float | str] = {
        "gpu_slowdowns": ", ".join(sorted({w for s in samples for w in s.slowdowns}))
    }
    if busy:
        summary["gpu_clock_mhz"] = busy[len(busy) // 2]
    if watts:
        summary["gpu_watts"] = round(sum(watts) / len(watts), 1)
    if heat:
        summary["gpu_celsius"] = max(heat)
    ecc = [s.ecc_errors for s in samples if s.ecc_errors is not None]
    if ecc:
        summary["gpu_ecc_errors"] = ecc[-1]
    return summary
