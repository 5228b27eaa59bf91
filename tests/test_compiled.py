"""Compiled code: the person's own is lent to all, a candidate's to nobody."""

import os
import re
import subprocess

import pytest

from autoresearch import compiled
from autoresearch.experiment import Proposal
from autoresearch.sandbox import last_line
from tests.nights import line_lab, run

LOOKS = """
import os, pathlib
_place = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
_place.mkdir(exist_ok=True)
print("FOUND", *sorted(path.name for path in _place.iterdir()), "END")
(_place / "own").write_text("x")
"""
OWN = Proposal(0, "baseline", "", "", "human")
OTHERS = Proposal(0, "check", "", "", "check")  # of a champion somebody else wrote


def found(lab, number):
    """What each run of an experiment found there."""
    logs = lab.logs.glob(f"{number}-*.log")
    logs = sorted(logs, key=lambda path: path.stat().st_mtime_ns)
    return [re.search(r"FOUND (.*)END", log.read_text())[1].split() for log in logs]


@pytest.fixture
def lab(tmp_path):
    lab = line_lab(tmp_path / "lab")
    source = lab.read("train.py")
    start = "run = prepare.begin(build_model)"  # what stands behind submit never runs
    assert source.count(start) == 1
    lab.path("train.py").write_text(source.replace(start, LOOKS + start))
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(
        ["git", "-C", lab.folder, *who, "commit", "-qam", "looks"], check=True
    )
    return lab


def test_a_persons_compiled_code_reaches_every_run_and_a_candidates_none(lab):
    source = lab.read("train.py")
    ideas = [
        {"title": name, "source": source.replace('"own"', f'"{name}"')}
        for name in ("first", "second")
    ]

    rows = run(lab, *ideas)

    assert [row.decision for row in rows[:1]] == ["keep"]
    assert found(lab, 0) == [[], ["own"], ["own"]]
    assert all(names == ["own"] for n in (1, 2) for names in found(lab, n))
    assert [p.name for p in compiled.store(lab, "train").iterdir()] == ["own"]


def test_links_and_too_much_are_not_kept(tmp_path):
    lab, scratch = line_lab(tmp_path / "lab"), tmp_path / "scratch"
    scratch.mkdir()
    compiled.lend(lab, scratch, "train", own=True)
    (scratch / ".compiled" / "link").symlink_to("/etc/passwd")
    os.mkfifo(scratch / ".compiled" / "pipe")

    compiled.keep(lab, OWN, scratch, "train")
    assert not compiled.store(lab, "train").exists()

    (scratch / ".compiled" / "code").write_text("x")
    compiled.keep(lab, OWN, scratch, "train")
    assert [p.name for p in compiled.store(lab, "train").iterdir()] == ["code"]


def test_nobody_elses_is_ever_kept(tmp_path):
    lab, scratch = line_lab(tmp_path / "lab"), tmp_path / "scratch"
    scratch.mkdir()
    compiled.lend(lab, scratch, "train", own=False)
    assert not (scratch / ".compiled").exists()
    (scratch / ".compiled").mkdir()
    (scratch / ".compiled" / "planted").write_text("x")

    compiled.keep(lab, OTHERS, scratch, "train")

    assert not compiled.store(lab, "train").exists()


def test_a_failure_is_named_by_its_error_and_not_by_the_advice_after_it():
    log = b"step 3\ntorch._inductor.exc.InductorError: no compiler\n\nSet VERBOSE=1\n\n"

    assert last_line(log) == "torch._inductor.exc.InductorError: no compiler"
    assert last_line(b"Error: early\n" + b"step\n" * 20) == "step"
    assert last_line(b"\n\n") == ""
