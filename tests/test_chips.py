"""GPUs: peaks by name, health against a recording of an H200's NVML, and void runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoresearch.devices import discovery, gpu_specs, nvml
from autoresearch.experiment import Device
from autoresearch.measure import void_runs
from autoresearch.run import session
from autoresearch.sandbox.process import ResourceLimits, SandboxSpec, build_environment

RECORDED = json.loads(
    (Path(__file__).parent / "recorded" / "nvml-h200.json").read_text()
)


def answering(sample):
    """NVML as it answered on a real card: torch 2.11, driver 580, mid-training."""

    def ask(name, *arguments):
        answer = sample[" ".join([name, *map(str, arguments)])]
        if isinstance(answer, dict):  # an error, or a structure
            return None
        if isinstance(answer, list):
            return tuple(process["pid"] for process in answer)
        return answer

    return ask


def test_an_h200_in_training_runs_into_its_power_cap():
    found = nvml.read_health(answering(RECORDED["training"]))

    assert found.clock_mhz == 1650
    assert found.power_watts == pytest.approx(692.4, abs=0.1)
    assert found.slowdowns == ("software power cap",)
    assert found.ecc_errors == 0
    assert len(found.compute_pids) == 2


def test_an_idle_h200_has_no_slowdown_and_nobody_on_it():
    found = nvml.read_health(answering(RECORDED["idle"]))

    assert found.slowdowns == ()
    assert found.compute_pids == ()


def test_what_a_card_does_not_tell_is_missing():
    found = nvml.read_health(lambda name, *arguments: None)

    assert found.clock_mhz is None
    assert found.power_watts is None
    assert found.slowdowns == ()


def test_a_machine_without_a_gpu_has_no_health():
    assert discovery.open_device_nvml(Device("cpu", None, 2)) is None


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 2080 Ti", 54),
        ("Tesla T4", 65),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_a_chip_has_the_peak_of_its_data_sheet(name, tera):
    assert gpu_specs.peak_flops(name) == tera * 1e12


def test_an_unknown_chip_has_no_mfu():
    assert gpu_specs.mfu_percent(1e9, 1e6, "NVIDIA GeForce GT 710") is None
    assert gpu_specs.mfu_percent(342.1e6, 1.15e6, "NVIDIA H200") == pytest.approx(
        39.8, 0.01
    )


TRAINING = nvml.read_health(answering(RECORDED["training"]))
HOT = replace(TRAINING, slowdowns=("hardware thermal slowdown",))
OURS = TRAINING.compute_pids
USUAL = (1.14e6, 1.15e6, 1.16e6)


def void(samples, ours, rate, usual):
    return void_runs.find_void_reason(
        nvml.find_interference(samples, ours), rate, usual
    )


def test_a_hot_and_slow_run_is_void():
    assert void([TRAINING, HOT], OURS, 0.9e6, USUAL) == "hardware thermal slowdown"


def test_a_neighbour_and_a_slow_run_is_void():
    assert "another process" in void([TRAINING], OURS[:1], 0.9e6, USUAL)


def test_where_the_driver_numbers_processes_otherwise_one_stranger_is_the_run():
    alone = replace(TRAINING, compute_pids=OURS[:1])

    assert void([alone], {1, 2}, 0.9e6, USUAL) is None
    assert "another process" in void([TRAINING], {1, 2}, 0.9e6, USUAL)


@pytest.mark.parametrize(
    ("samples", "ours", "rate", "usual"),
    [
        ([TRAINING], OURS, 0.9e6, USUAL),  # slow, and nothing but a power cap
        ([HOT], OURS, 1.15e6, USUAL),  # hot, and as fast as ever
        ([TRAINING], (), 1.15e6, USUAL),  # a neighbour that did no harm
        ([HOT], OURS, 0.9e6, USUAL[:2]),  # too few runs to know what is usual
        ([], OURS, 0.9e6, USUAL),  # nobody looked
    ],
)
def test_a_run_counts_when_heat_and_slowness_do_not_meet(samples, ours, rate, usual):
    assert void(samples, ours, rate, usual) is None


def test_a_row_keeps_clock_power_heat_errors_and_slowdowns():
    found = nvml.summarize_health([TRAINING, TRAINING, HOT])

    assert found["gpu_clock_mhz"] == 1650
    assert found["gpu_watts"] == pytest.approx(692.4)
    assert found["gpu_celsius"] == TRAINING.temperature_celsius
    assert found["gpu_ecc_errors"] == 0
    assert found["gpu_slowdowns"] == "hardware thermal slowdown, software power cap"


def test_without_samples_there_is_nothing_to_keep():
    assert nvml.summarize_health([]) == {}


CARDS = tuple(
    gpu_specs.Gpu(index, f"GPU-{uuid}", "NVIDIA H100 80GB HBM3", "580", 85.0)
    for index, uuid in enumerate(("54cb337b", "0c2f3020", "54dd0000"))
)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-0c2f3020", [1]),
        ("GPU-54dd", [2]),
        ("0,9,1", [0]),
    ],
)
def test_who_limits_cuda_to_some_cards_limits_a_night_to_them(visible, indices):
    assert [gpu.index for gpu in discovery.filter_visible(CARDS, visible)] == indices


def test_a_guest_is_told_its_card_by_what_it_is_called_in_every_cage(tmp_path):
    slot = Device("cuda", 1, 8, "GPU-0c2f3020")
    room = SandboxSpec(tmp_path, tmp_path, slot, ResourceLimits(1.0))

    assert build_environment(room)["CUDA_VISIBLE_DEVICES"] == "GPU-0c2f3020"
    assert "CUDA_VISIBLE_DEVICES" not in build_environment(
        replace(room, device=Device())
    )


def card(index, name, memory_gb=80.0):
    return gpu_specs.Gpu(index, f"GPU-{index}", name, "580.1", memory_gb)


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ([], []),
        (["RTX 4090"], [0]),
        (["H100", "H100", "H100"], [0, 1, 2]),
        (["RTX 3060", "RTX 4090", "RTX 4090"], [1, 2]),
        (["RTX 3060", "RTX 4090"], [0]),
    ],
)
def test_a_night_runs_on_gpus_of_one_kind_and_says_which_it_leaves_out(names, used):
    gpus = [card(index, name) for index, name in enumerate(names)]

    same, others = discovery.partition_same_model(gpus)

    assert [gpu.index for gpu in same] == used
    assert sorted(gpu.index for gpu in (*same, *others)) == list(range(len(names)))
    for gpu, words in zip(
        others, session.list_left_out_gpus(same, others), strict=True
    ):
        assert words.startswith(f"GPU {gpu.index} ({gpu.name}) is left out")
        assert f"CUDA_VISIBLE_DEVICES={gpu.index}" in words


def test_one_name_with_two_sizes_of_memory_is_two_kinds():
    same, others = discovery.partition_same_model(
        [card(0, "A100", 40.0), card(1, "A100", 80.0)]
    )

    assert ([gpu.index for gpu in same], [gpu.index for gpu in others]) == ([1], [0])


def test_small_cards_for_the_screens_do_not_outvote_the_one_that_computes():
    cards = [card(0, "T400", 4.0), card(1, "A6000", 48.0), card(2, "T400", 4.0)]

    same, others = discovery.partition_same_model(cards)

    assert [gpu.index for gpu in same] == [1]
    assert [gpu.index for gpu in others] == [0, 2]


@pytest.mark.parametrize(
    ("vocabulary", "memory_gb", "rows"),
    [(8192, None, 64), (8192, 80.0, 64), (8192, 12.0, 22), (65536, 80.0, 18), (65536, 0.1, 1)],
)  # fmt: skip
def test_a_batch_has_no_more_logits_than_the_card_can_hold(vocabulary, memory_gb, rows):
    found = gpu_specs.rows_at_a_time(2048, vocabulary, "cuda", memory_gb)

    assert found == rows
    if memory_gb is not None and rows > 1:
        assert found * 2048 * vocabulary * gpu_specs.LOGIT_BYTES <= memory_gb * 1e9
