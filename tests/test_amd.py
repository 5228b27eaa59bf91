"""AMD's GPUs: from a recorded /sys to what a guest is told and shown."""

from dataclasses import replace

import pytest

from autoresearch.devices import rocm
from autoresearch.experiment import Device
from autoresearch.sandbox.backends import list_gpu_device_files
from autoresearch.sandbox.process import ResourceLimits, SandboxSpec, build_environment

CPU = "cpu_cores_count 64\nsimd_count 0\nmem_banks_count 1\ngfx_target_version 0\n"
GPU = (
    "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\nmax_waves_per_simd 8\n"
    "gfx_target_version {version}\nvendor_id 4098\ndevice_id 29857\n"
    "drm_render_minor {minor}\nunique_id {unique}\n"
)
BANK = "heap_type {heap}\nsize_in_bytes {size}\nflags 0\nwidth 8192\n"
MI300X = {"version": 90402, "minor": 128, "unique": 0x2B5F9D3E0C4A1187}


@pytest.fixture
def system(tmp_path):
    """(nodes, drm) to fill."""
    places = (tmp_path / "nodes", tmp_path / "drm")
    for place in places:
        place.mkdir()
    return places


def add(system, number, properties, banks=(), name=None, minor=128):
    node = system[0] / str(number)
    node.mkdir()
    (node / "properties").write_text(properties)
    for at, (heap, size) in enumerate(banks):
        bank = node / "mem_banks" / str(at)
        bank.mkdir(parents=True)
        (bank / "properties").write_text(BANK.format(heap=heap, size=size))
    if name is not None:
        device = system[1] / f"renderD{minor}" / "device"
        device.mkdir(parents=True)
        (device / "product_name").write_text(name + "\n")


def test_a_machine_without_the_driver_has_none(tmp_path):
    assert rocm.list_amd_gpus(tmp_path / "nowhere", tmp_path) == ()


def test_gpus_are_counted_as_rocm_counts_them_and_cpus_are_not(system):
    add(system, 0, CPU, [(0, 540 * 10**9)])
    big = GPU.format(**MI300X)
    add(system, 2, big, [(1, 206 * 10**9)], name="AMD Instinct MI300X OAM")
    add(system, 10, GPU.format(version=110000, minor=129, unique=0), [(2, 24 * 10**9)])

    first, second = rocm.list_amd_gpus(*system)

    assert (first.index, second.index) == (0, 1)
    assert first.uuid == "GPU-2b5f9d3e0c4a1187"
    assert (first.name, first.memory_gb) == ("AMD Instinct MI300X OAM", 206.0)
    assert first.device_file == "/dev/dri/renderD128"
    assert (second.uuid, second.name) == ("", "AMD gfx1100")
    assert (second.memory_gb, second.device_file) == (24.0, "/dev/dri/renderD129")


@pytest.mark.parametrize(
    ("version", "name"),
    [(90402, "AMD gfx942"), (90010, "AMD gfx90a"), (100300, "AMD gfx1030")],
)
def test_a_card_without_a_name_is_called_as_compilers_call_it(version, name):
    assert rocm.gfx_target_name({"gfx_target_version": version}) == name


@pytest.mark.parametrize("properties", ["", "simd_count many\n", "\0\n\n 1 2 3\n"])
def test_what_the_kernel_garbles_is_no_gpu(system, properties):
    add(system, 1, properties)
    (system[0] / "generation_id").write_text("2\n")

    assert rocm.list_amd_gpus(*system) == ()


def test_a_guest_is_told_its_amd_card_and_shown_no_other(tmp_path, monkeypatch):
    slot = Device("cuda", 1, 8, "GPU-2b5f9d3e0c4a1187", 206.0, "/dev/dri/renderD129")
    room = SandboxSpec(tmp_path, tmp_path, slot, ResourceLimits(1.0))

    told = build_environment(room)

    assert told["ROCR_VISIBLE_DEVICES"] == "GPU-2b5f9d3e0c4a1187"
    assert "CUDA_VISIBLE_DEVICES" not in told
    nameless = build_environment(replace(room, device=replace(slot, uuid="")))
    assert nameless["ROCR_VISIBLE_DEVICES"] == "1"
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    shown = set(map(str, list_gpu_device_files(slot)))
    assert {"/dev/kfd", "/dev/dri/renderD129"} <= shown
    assert not {"/dev/dri", "/dev/dri/renderD128", "/dev/nvidia1"} & shown


def test_amd_gpus_are_looked_for_where_torch_was_built_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(rocm, "torch_libraries", lambda: tmp_path)
    assert not rocm.has_rocm_torch()

    (tmp_path / "libtorch_hip.so").touch()

    assert rocm.has_rocm_torch()
    monkeypatch.setattr(rocm, "torch_libraries", lambda: None)
    assert not rocm.has_rocm_torch()
