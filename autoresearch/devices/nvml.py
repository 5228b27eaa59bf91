"""GPU health, as NVML tells it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

# NVML's bits for why a clock is not at its maximum.
SLOWDOWNS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# A desktop's GPU lives with a power cap; the others mean that something is wrong.
HARMFUL = frozenset(SLOWDOWNS.values()) - {"software power cap"}


Answer = int | str | tuple[int, ...] | None  # None: this GPU or driver cannot tell


class Nvml(Protocol):
    """One GPU's NVML functions, by name, without the handle."""

    def __call__(self, name: str, *arguments: int) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Health:
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


def health(ask: Nvml) -> Health:
    """Ask one GPU how it is. Numbers of functions and bits are NVML's."""
    reasons = number(ask("nvmlDeviceGetCurrentClocksEventReasons")) or 0
    milliwatts = number(ask("nvmlDeviceGetPowerUsage"))
    limit = number(ask("nvmlDeviceGetEnforcedPowerLimit"))
    computing = ask("nvmlDeviceGetComputeRunningProcesses")
    drawing = ask("nvmlDeviceGetGraphicsRunningProcesses")
    return Health(
        number(ask("nvmlDeviceGetClockInfo", 1)),
        number(ask("nvmlDeviceGetMaxClockInfo", 1)),
        None if milliwatts is None else milliwatts / 1000,
        None if limit is None else limit / 1000,
        number(ask("nvmlDeviceGetTemperature", 0)),
        tuple(words for bit, words in SLOWDOWNS.items() if reasons & bit),
        number(ask("nvmlDeviceGetTotalEccErrors", 1, 0)),
        computing if isinstance(computing, tuple) else (),
        len(drawing) if isinstance(drawing, tuple) else 0,
    )


def number(answer: Answer) -> int | None:
    """An answer that is a number."""
    return answer if isinstance(answer, int) else None


def harm(samples: Sequence[Health], ours: Collection[int]) -> str | None:
    """What may have slowed a run down that is not its own doing, or None.

    ours: all processes the run ever had. Where the driver counts processes in another
    namespace (a container), one that nobody knows is taken for the run.
    """
    harmed = {w for sample in samples for w in sample.slowdowns} & HARMFUL
    if harmed:
        return ", ".join(sorted(harmed))
    seen = {pid for sample in samples for pid in sample.compute_pids}
    others = seen - set(ours)
    if len(others) > (1 if others == seen else 0):
        return f"another process computed on the GPU (pid {min(others)})"
    return None


def told(samples: Sequence[Health]) -> dict[str, float | str]:
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
