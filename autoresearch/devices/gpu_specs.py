"""GPU specifications: peak FLOP/s by name, and how many rows fit into its memory.

Imports nothing but the standard library.

Not covered: two GPUs of one name with different power limits; their tokens per second
differ, their entries here do not.
"""

import re
from dataclasses import dataclass

# Dense bf16 with float32 accumulation, in TFLOP/s, from the vendors' data sheets; fp16
# for chips without bf16. The first pattern that matches counts.
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
    (r"MI250X?", 191),  # one of its two dies: a process sees one as a device
    (r"MI210", 181),
)
# Tokens per scoring batch, if the memory allows.
BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 131072}
# GPU memory per logit: 22 bytes by count while the loss is computed (bf16, then floats
# around the softcap, log-softmax), the rest for the model.
LOGIT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as its driver reports it."""

    index: int
    uuid: str  # "": it has none
    name: str
    driver: str
    memory_gb: float
    device_file: str = ""  # of an AMD GPU; NVIDIA's are known by their index


def peak_flops(name: str) -> float | None:
    """Return the peak FLOP/s of a GPU by its name; None: not in the table."""
    for pattern, tera in PEAK_TFLOPS:
        if re.search(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", name):
            return tera * 1e12
    return None


def mfu_percent(
    flops_per_token: float, tokens_per_second: float, name: str
) -> float | None:
    """Compute the model FLOP/s utilization (MFU) in percent; None: peak unknown."""
    peak = peak_flops(name)
    return None if peak is None else 100 * flops_per_token * tokens_per_second / peak


def rows_at_a_time(
    context: int, vocabulary: int, device: str, memory_gb: float | None = None
) -> int:
    """Return the rows per scoring batch; fewer if a GPU cannot hold their logits."""
    tokens = float(BATCH_TOKENS[device])
    if memory_gb is not None:
        tokens = min(tokens, memory_gb * 1e9 / (LOGIT_BYTES * vocabulary))
    return max(1, int(tokens) // context)
