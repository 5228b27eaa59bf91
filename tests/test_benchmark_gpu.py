"""benchmarks/gpu.py: what it reads from a run, names and order, the other's window."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, step

ROOT = Path(gpu.__file__).parent.parent
ORIGINAL = ROOT / "benchmarks" / "original"


def test_a_summary_is_read_whatever_stands_behind_the_number():
    printed = (
        "attention: cuDNN does not work here\n---\n"
        "val_bpb:            0.328401   (unofficial)\n"
        "evaluation_seconds:2.8\nmfu_percent:        unknown\n"
    )

    found = dict(gpu.SUMMARY.findall(printed))

    assert found == {"val_bpb": "0.328401", "evaluation_seconds": "2.8"}


def test_the_other_recipes_window_counts_the_keys_before_the_query():
    kernels = runpy.run_path(str(ORIGINAL / "kernels.py"))
    q, k, v = torch.randn(3, 1, 32, 2, 16)
    kernels["MASKS"][32, 8] = kernels["make_mask"](32, 8, "cpu")

    found = kernels["flex_attention"](
        *(x.bfloat16().transpose(1, 2) for x in (q, k, v)),
        block_mask=kernels["MASKS"][32, 8],
    ).transpose(1, 2)

    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 4
    ago = torch.arange(32)[:, None] - torch.arange(32)
    scores = scores.masked_fill((ago < 0) | (ago > 8), -torch.inf)
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    assert torch.allclose(found.float(), wanted, atol=0.05)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("run = prepare.begin(build_model)\n", {"prepare.py", "train.py"}),
        (
            "from prepare import Tokenizer\n",
            {"prepare.py", "train.py", "kernels.py", "lib.py"},
        ),
    ],
)
def test_a_train_py_finds_the_prepare_py_it_was_written_for(tmp_path, source, expected):
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "prepare.py").write_text("VOCABULARY = 61\n")
    (tmp_path / "train.py").write_text(source)

    folder = gpu.place(tmp_path / "train.py", lab, tmp_path / "there")

    assert {path.name for path in folder.iterdir()} == expected
    ours = (folder / "prepare.py").read_text() == "VOCABULARY = 61\n"
    assert ours == ("kernels.py" not in expected)


def test_each_recipe_has_a_name_of_its_own():
    paths = [Path(p) for p in ("a/mar8.py", "b/mar8.py", "x/hyra/train.py", "ours.py")]

    assert gpu.name_recipes(paths) == {
        "mar8": paths[0],
        "mar8#2": paths[1],
        "hyra": paths[2],
        "ours#2": paths[3],
    }


def test_the_order_is_reversed_from_one_seed_to_the_next():
    names = {"ours": 1, "mar8": 2, "hyra": 3}

    first, second, third = (gpu.order_commands(names, nth) for nth in range(3))

    assert first == third == ["ours", "mar8", "hyra"]
    assert second == first[::-1]


def test_a_step_of_every_size_that_is_asked_for_is_timed():
    command = (sys.executable, "benchmarks/step.py", "--profile", "demo", "--json")
    sizes = ("--steps", "1", "--set", "DEPTH=1", "--set=DEPTH=2,ASPECT=64")

    done = subprocess.run(
        (*command, *sizes), cwd=ROOT, capture_output=True, text=True, check=True
    )

    small, large = json.loads(done.stdout)
    assert (small["constants"], large["constants"]) == ("DEPTH=1", "DEPTH=2,ASPECT=64")
    assert 0 < small["parameters_M"] < large["parameters_M"]
    assert small["tokens_per_second"] > 0
    assert set(small["attention"]) <= {"L", "S"}


@pytest.mark.parametrize("wrong", ["DEPHT", "DEPTH=x", "DEPTH=1,,ASPECT"])
def test_what_is_no_constant_is_not_measured_under_its_name(wrong):
    with pytest.raises(SystemExit, match="not NAME=VALUE"):
        step.change_constants("DEPTH = 4\nASPECT = 32\n", wrong)
