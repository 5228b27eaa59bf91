"""GPU health, as NVML tells it."""

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
# A desktop's GPU lives with a power cap; the others mean that something is wrong.
HARMFUL_REASONS = frozenset(SLOWDOWN_REASONS.values()) - {"software power cap"}


NvmlAnswer = int | str | tuple[int, ...] | None  # None: this GPU or driver cannot tell


class NvmlQuery(Protocol):
    """One GPU's NVML functions, by name, without the handle."""

    def __call__(self, name: str, *arguments: int) -> NvmlAnswer: ...


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """How a GPU was at one moment."""

    clock_mhz: int | None  # of the multiprocessors
    highest_clock_mhz: int | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: int | None
    slowdowns: tuple[str, ...]  # why the clock is not at its highest
    ecc_errors: int | None  # uncorrected, since the driver was loaded
    compute_pids: tuple[int, ...]  # who computes on it
    graphics_processes: int  # every desktop has some


def read_health(ask: NvmlQuery) -> GpuHealth:
    """Ask one GPU how it is. Numbers of functions and bits are NVML's."""
    reasons = as_integer(ask("nvmlDeviceGetCurrentClocksEventReasons")) or 0
    milliwatts = as_integer(ask("nvmlDeviceGetPowerUsage"))
    limit = as_integer(ask("nvmlDeviceGetEnforcedPowerLimit"))
    computing = ask("nvmlDeviceGetComputeRunningProcesses")
    drawing = ask("nvmlDeviceGetGraphicsRunningProcesses")
    return GpuHealth(
        as_integer(ask("nvmlDeviceGetClockInfo", 1)),
        as_integer(ask("nvmlDeviceGetMaxClockInfo", 1)),
        None if milliwatts is None else milliwatts / 1000,
        None if limit is None else limit / 1000,
        as_integer(ask("nvmlDeviceGetTemperature", 0)),
        tuple(words for bit, words in SLOWDOWN_REASONS.items() if reasons & bit),
        as_integer(ask("nvmlDeviceGetTotalEccErrors", 1, 0)),
        computing if isinstance(computing, tuple) else (),
        len(drawing) if isinstance(drawing, tuple) else 0,
    )


def as_integer(answer: NvmlAnswer) -> int | None:
    """An answer that is a number."""
    return answer if isinstance(answer, int) else None


def find_interference(
    samples: Sequence[GpuHealth], ours: Collection[int]
) -> str | None:
    """What may have slowed a run down that is not its own doing, or None.

    ours: all processes the run ever had. Where the driver counts processes in another
    namespace (a container), one that nobody knows is taken for the run.
    """
    harmed = {w for sample in samples for w in sample.slowdowns} & HARMFUL_REASONS
    if harmed:
        return ", ".join(sorted(harmed))
    seen = {pid for sample in samples for pid in sample.compute_pids}
    others = seen - set(ours)
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
    found: dict[str, float | str] = {
        "gpu_slowdowns": ", ".join(sorted({w for s in samples for w in s.slowdowns}))
    }
    if busy:
        found["gpu_clock_mhz"] = busy[len(busy) // 2]
    if watts:
        found["gpu_watts"] = round(sum(watts) / len(watts), 1)
    if heat:
        found["gpu_celsius"] = max(heat)
    ecc = [s.ecc_errors for s in samples if s.ecc_errors is not None]
    if ecc:
        found["gpu_ecc_errors"] = ecc[-1]
    return found
