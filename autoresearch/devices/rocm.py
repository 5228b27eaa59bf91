"""AMD GPUs, from the Linux kernel. Starts no program and imports no torch.

Under /sys/class/kfd/kfd/topology/nodes every processor that ROCm could compute on has a
folder; those with SIMDs are GPUs, in the order in which ROCm counts them. ("KFD
Topology" and "GPU isolation techniques", ROCm documentation.)

Not covered: health. Tested with recorded folders only: no session was ever run on an
AMD GPU.
"""

import platform
from importlib.util import find_spec
from pathlib import Path

from autoresearch.devices.gpu_specs import Gpu

KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
DRM_DEVICES = Path("/sys/class/drm")
DRIVER_VERSION = Path("/sys/module/amdgpu/version")  # absent: the kernel's own
VRAM_HEAP_TYPES = (1, 2)  # heaps of a GPU's memory, host-visible or not


def list_amd_gpus(nodes: Path = KFD_NODES, drm: Path = DRM_DEVICES) -> tuple[Gpu, ...]:
    """List every AMD GPU of this machine; empty without its driver."""
    folders = [path for path in nodes.glob("*") if path.name.isdecimal()]
    folders.sort(key=lambda path: int(path.name))
    # Without SIMDs it is a CPU, or a GPU that this user may not read about.
    gpus = [folder for folder in folders if read_properties(folder).get("simd_count")]
    return tuple(read_gpu(index, folder, drm) for index, folder in enumerate(gpus))


def read_gpu(index: int, folder: Path, drm: Path) -> Gpu:
    """Read one GPU from its folder."""
    node = read_properties(folder)
    render = f"renderD{node.get('drm_render_minor', 0)}"
    heaps = [read_properties(bank) for bank in sorted(folder.glob("mem_banks/*"))]
    own = [heap for heap in heaps if heap.get("heap_type") in VRAM_HEAP_TYPES]
    unique = node.get("unique_id", 0)
    return Gpu(
        index,
        f"GPU-{unique:016x}" if unique else "",  # as ROCR_VISIBLE_DEVICES takes it
        read_sysfs_text(drm / render / "device" / "product_name")
        or gfx_target_name(node),
        read_sysfs_text(DRIVER_VERSION) or platform.release(),
        sum(heap.get("size_in_bytes", 0) for heap in own) / 1e9,
        f"/dev/dri/{render}",
    )


def has_rocm_torch() -> bool:
    """Whether the installed torch was built for ROCm."""
    folder = torch_libraries()
    return folder is not None and (folder / "libtorch_hip.so").exists()


def torch_libraries() -> Path | None:
    """Return the folder of the installed torch's libraries; None: no torch."""
    spec = find_spec("torch")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


def read_properties(folder: Path) -> dict[str, int]:
    """Read the numbers of a `properties` file; empty if it may not be read."""
    lines = (
        line.split() for line in read_sysfs_text(folder / "properties").splitlines()
    )
    return {
        words[0]: int(words[1])
        for words in lines
        if len(words) == 2 and words[1].isdecimal()
    }


def read_sysfs_text(path: Path) -> str:
    """Read a file; "" if it may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def gfx_target_name(node: dict[str, int]) -> str:
    """Return the name that compilers use: 90402 -> gfx942, 90010 -> gfx90a."""
    version = node.get("gfx_target_version", 0)
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"AMD gfx{major}{minor:x}{step:x}"
