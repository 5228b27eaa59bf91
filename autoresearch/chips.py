"""What a GPU can do at most, and how it fares: peak FLOPs by name, health from NVML.

`rows_at_a_time` is what scoring asks for. `health` asks whatever answers like NVML: the
driver (`machine.driver`) or a recording. What a driver does not tell is None, never a
guess. `void` says when a slow run was the machine's fault and not the candidate's.
Imports nothing but the standard library.

Not covered: other makers' health, and two GPUs of one name with different power limits:
their tokens per second tell them apart, nothing here does.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

# Dense bf16 with float32 accumulation, in TFLOP/s, by the makers' data sheets; fp16
# where a chip has no bf16. The first name that matches counts.
PEAK_TFLOPS = (
    (r"GB200|B200", 2250),
    (r"B100", 1750),
    (r"H100 PCIe", 756),
    (r"H100 NVL", 835),
    (r"H100|H200|H800|GH200", 989),
    (r"H20", 148),
    (r"A100|A800", 312),
    (r"A40", 150),
    (r"A30", 165),
    (r"A10G?", 125),
    (r"RTX 6000 Ada", 364),
    (r"RTX A6000", 155),
    (r"L40S", 362),
    (r"L40", 181),
    (r"L4", 121),
    (r"V100", 125),
    (r"T4", 65),
    (r"RTX 5090", 210),
    (r"RTX 5080", 113),
    (r"RTX 4090", 165),
    (r"RTX 4080", 97),
    (r"RTX 3090", 71),
    (r"RTX 3080", 60),
    (r"RTX 2080 Ti", 54),
    (r"MI355X", 2516),
    (r"MI300X|MI325X", 1307),
    (r"MI250X?", 191),  # one of its two dies, which is what a process sees
    (r"MI210", 181),
)

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
# Tokens that a model is asked about at a time, where the card has room.
BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 131072}
# Of GPU memory for each of their logits: 22 by count while the loss is made (bf16, then
# floats around the softcap, logarithm of the softmax), the rest for the model.
LOGIT_BYTES = 32
FEWEST_RUNS = 3  # before a machine has a range of its own


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as its driver tells of it."""

    index: int
    uuid: str  # "" where the card has none
    name: str
    driver: str
    memory_gb: float
    node: str = ""  # the device file that opens an AMD GPU; NVIDIA's go by their index


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


def peak_flops(name: str) -> float | None:
    """FLOP/s of a GPU by its name; None for one that is not in the table."""
    for pattern, tera in PEAK_TFLOPS:
        if re.search(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", name):
            return tera * 1e12
    return None


def mfu_percent(
    flops_per_token: float, tokens_per_second: float, name: str
) -> float | None:
    """Model FLOPs used, in percent of the GPU's peak; None where that is unknown."""
    peak = peak_flops(name)
    return None if peak is None else 100 * flops_per_token * tokens_per_second / peak


def rows_at_a_time(
    context: int, vocabulary: int, device: str, memory_gb: float | None = None
) -> int:
    """Rows to ask a model about; fewer where a GPU cannot hold their logits."""
    tokens = float(BATCH_TOKENS[device])
    if memory_gb is not None:
        tokens = min(tokens, memory_gb * 1e9 / (LOGIT_BYTES * vocabulary))
    return max(1, int(tokens) // context)


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


def void(
    harmed: str | None, tokens_per_second: float, usual: Sequence[float]
) -> str | None:
    """Why a run does not count, or None.

    usual: tokens per second of earlier runs of its champion here. Slow alone is the
    candidate's business, heat alone nobody's: both must come together.
    """
    if len(usual) < FEWEST_RUNS or tokens_per_second >= min(usual):
        return None
    return harmed


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
