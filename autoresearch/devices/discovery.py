"""What this machine is: its devices, and the facts that make scores comparable.

Scores of one series come from one kind of machine: a driver, a torch or a GPU that
changed is another series. Asking costs no import of torch.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from autoresearch.devices import rocm
from autoresearch.devices.gpu_specs import Gpu
from autoresearch.devices.nvml import NvmlAnswer, NvmlQuery
from autoresearch.experiment import Device

GIB = 1 << 30
# Which limit a user to some AMD GPUs; the first that is set counts.
AMD_VISIBLE_VARIABLES = (
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
)


def discover_devices() -> tuple[Device, ...]:
    """One slot per GPU that runs may take; without one the CPU counts as one."""
    threads = available_cpu_count()
    gpus, _ = partition_same_model(list_visible_gpus())
    if gpus:
        share = max(1, threads // len(gpus))
        return tuple(
            Device("cuda", gpu.index, share, gpu.uuid, gpu.memory_gb, gpu.device_file)
            for gpu in gpus
        )
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return (Device("mps", None, threads),)
    return (Device("cpu", None, threads),)


def list_visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this user may take."""
    found = list_gpus()
    names = (
        AMD_VISIBLE_VARIABLES
        if found and found[0].device_file
        else ("CUDA_VISIBLE_DEVICES",)
    )
    said = (os.environ[name] for name in names if name in os.environ)
    return filter_visible(found, next(said, None))


def list_gpus() -> tuple[Gpu, ...]:
    """Those of the maker that the installed torch was built for."""
    return rocm.list_amd_gpus() if rocm.has_rocm_torch() else nvidia()


def partition_same_model(
    gpus: Sequence[Gpu],
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """Those of the kind that has most memory together, and the others.

    A budget of seconds is more text on a faster card: scores of two kinds of GPU do not
    compare, and no series holds both.
    """
    if not gpus:
        return (), ()
    kinds: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.name, round(gpu.memory_gb)), []).append(gpu)
    largest = max(kinds, key=lambda kind: (kind[1] * len(kinds[kind]), kind[1]))
    same = tuple(kinds[largest])
    return same, tuple(gpu for gpu in gpus if gpu not in same)


def filter_visible(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[Gpu, ...]:
    """Those that a variable names, by number or (the start of a) uuid.

    None: it is not set. As CUDA does, what comes after an unknown name is not there.
    """
    if visible is None:
        return gpus
    found: list[Gpu] = []
    for name in visible.split(","):
        names = (g for g in gpus if name.strip() in (str(g.index), g.uuid))
        starts = (g for g in gpus if "-" in name and g.uuid.startswith(name.strip()))
        gpu = next(names, None) or next(starts, None)
        if gpu is None:
            break
        found.append(gpu)
    return tuple(found)


def nvidia() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU of this machine; empty without a driver."""
    what = "--query-gpu=index,uuid,name,driver_version,memory.total"
    query = (what, "--format=csv,noheader")
    try:
        done = subprocess.run(
            ("nvidia-smi", *query), capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if done.returncode != 0:
        return ()
    lines = [line.split(", ") for line in done.stdout.splitlines() if line]
    return tuple(
        Gpu(int(index), uuid, name, driver, float(memory.split()[0]) * 2**20 / 1e9)
        for index, uuid, name, driver, memory in lines
    )


def open_nvml(index: int) -> NvmlQuery | None:
    """NVML of one GPU; None without nvidia-ml-py (extra `gpu`) or without a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None

    def ask(name: str, *arguments: int) -> NvmlAnswer:
        try:
            answer = getattr(pynvml, name)(handle, *arguments)
        except pynvml.NVMLError:  # this GPU cannot tell
            return None
        if isinstance(answer, list):
            return tuple(process.pid for process in answer)
        return answer if isinstance(answer, int | str) else None

    return ask


def open_device_nvml(slot: Device) -> NvmlQuery | None:
    """NVML of the slot's GPU; None for other devices and without NVML."""
    asked = slot.device_type == "cuda" and not slot.device_file
    return open_nvml(slot.index or 0) if asked else None


def available_cpu_count() -> int:
    """Processors this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if sys.platform == "linux"
        else (os.cpu_count() or 1)
    )


def collect_machine_facts(slot: Device) -> dict[str, str]:
    """The machine as a series knows it."""
    python = f"python {platform.python_version()}"
    torch = f"torch {package_version('torch')}"
    if slot.device_type == "cuda":
        gpu = next(gpu for gpu in list_gpus() if gpu.index == (slot.index or 0))
        card = {"device": gpu.name, "driver": gpu.driver}
        return {**card, "torch": torch, "python": python}
    device = (
        f"{cpu_model_name()}, {slot.threads} threads"
        if slot.device_type == "cpu"
        else cpu_model_name()
    )
    return {"device": device, "torch": torch, "python": python}


def package_version(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def cpu_model_name() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def default_memory_limit_gb() -> float:
    """What a run may take when program.md does not say: nine tenths of all there is."""
    return 0.9 * psutil.virtual_memory().total / 1e9
