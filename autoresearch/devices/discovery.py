"""The devices of this machine, and the facts that make scores comparable.

Scores of one series come from one kind of machine: another driver, torch version or GPU
model begins another series. Nothing here imports torch.
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

# Variables that select AMD GPUs; the first that is set counts.
AMD_VISIBLE_VARIABLES = (
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
)


def discover_devices() -> tuple[Device, ...]:
    """Return one device per GPU that runs may use; without a GPU, the CPU."""
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
    """List the GPUs that the environment makes visible to this user."""
    gpus = list_gpus()
    names: tuple[str, ...] = ("CUDA_VISIBLE_DEVICES",)
    if gpus and gpus[0].device_file:
        names = AMD_VISIBLE_VARIABLES
    values = (os.environ[name] for name in names if name in os.environ)
    return filter_visible(gpus, next(values, None))


def list_gpus() -> tuple[Gpu, ...]:
    """List the GPUs of the vendor that the installed torch was built for."""
    return rocm.list_amd_gpus() if rocm.has_rocm_torch() else nvidia()


def partition_same_model(
    gpus: Sequence[Gpu],
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """Return the GPUs of the model with the most memory in total, and the others.

    A budget of seconds is more text on a faster GPU: scores of two models of GPU are
    not comparable, and no series contains both.
    """
    if not gpus:
        return (), ()
    models: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in gpus:
        models.setdefault((gpu.name, round(gpu.memory_gb)), []).append(gpu)
    largest = max(models, key=lambda model: (model[1] * len(models[model]), model[1]))
    same = tuple(models[largest])
    return same, tuple(gpu for gpu in gpus if gpu not in same)


def filter_visible(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that a variable names, by number, uuid or prefix of a uuid.

    visible: its value; None: not set. As in CUDA, names after an unknown one are
    ignored.
    """
    if visible is None:
        return gpus
    selected: list[Gpu] = []
    for name in visible.split(","):
        names = (g for g in gpus if name.strip() in (str(g.index), g.uuid))
        starts = (g for g in gpus if "-" in name and g.uuid.startswith(name.strip()))
        gpu = next(names, None) or next(starts, None)
        if gpu is None:
            break
        selected.append(gpu)
    return tuple(selected)


def nvidia() -> tuple[Gpu, ...]:
    """List every NVIDIA GPU of this machine; empty without a driver."""
    fields = "--query-gpu=index,uuid,name,driver_version,memory.total"
    query = (fields, "--format=csv,noheader")
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
    """Open NVML for one GPU; None without nvidia-ml-py (extra `gpu`) or driver."""
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
        except pynvml.NVMLError:  # not supported by this GPU or driver
            return None
        if isinstance(answer, list):
            return tuple(process.pid for process in answer)
        return answer if isinstance(answer, int | str) else None

    return ask


def open_device_nvml(device: Device) -> NvmlQuery | None:
    """Open NVML for a device; None for other devices and without NVML."""
    is_nvidia = device.device_type == "cuda" and not device.device_file
    return open_nvml(device.index or 0) if is_nvidia else None


def available_cpu_count() -> int:
    """Count the processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def collect_machine_facts(device: Device) -> dict[str, str]:
    """Collect the facts of the machine that define a series."""
    python = f"python {platform.python_version()}"
    torch = f"torch {package_version('torch')}"
    if device.device_type == "cuda":
        gpu = next(gpu for gpu in list_gpus() if gpu.index == (device.index or 0))
        facts = {"device": gpu.name, "driver": gpu.driver}
        return {**facts, "torch": torch, "python": python}
    name = cpu_model_name()
    if device.device_type == "cpu":
        name = f"{name}, {device.threads} threads"
    return {"device": name, "torch": torch, "python": python}


def package_version(package: str) -> str:
    """Return the installed version of a package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def cpu_model_name() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def default_memory_limit_gb() -> float:
    """Return the memory limit if program.md sets none: nine tenths of all memory."""
    return 0.9 * psutil.virtual_memory().total / 1e9
