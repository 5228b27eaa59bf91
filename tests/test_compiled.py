"""Compiled code: the person's own is lent to all, a candidate's to nobody."""

import os
import re
import subprocess
from dataclasses import replace

import pytest

from autoresearch.commands import check
from autoresearch.experiment import Proposal
from autoresearch.git import compute_blob_id
from autoresearch.lab.folder import Lab
from autoresearch.measure import compile_cache
from autoresearch.measure.trainer import last_error_line
from autoresearch.run import session
from autoresearch.sandbox import process
from tests.nights import command, line_lab, run

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
    logs = lab.log_folder.glob(f"{number}-*.log")
    logs = sorted(logs, key=lambda path: path.stat().st_mtime_ns)
    return [re.search(r"FOUND (.*)END", log.read_text())[1].split() for log in logs]


def lent(lab, scratch):
    """What the person's own train.py is given."""
    compile_cache.create_compile_folder(scratch)
    compile_cache.copy_to_scratch(lab, scratch, "train")


@pytest.fixture
def lab(tmp_path):
    lab = line_lab(tmp_path / "lab")
    source = lab.read_file("train.py")
    start = "run = prepare.begin(build_model)"  # what stands behind submit never runs
    assert source.count(start) == 1
    lab.file_path("train.py").write_text(source.replace(start, LOOKS + start))
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(
        ["git", "-C", lab.folder, *who, "commit", "-qam", "looks"], check=True
    )
    return lab


def test_a_persons_compiled_code_reaches_every_run_and_a_candidates_none(lab):
    source = lab.read_file("train.py")
    ideas = [
        {"title": name, "source": source.replace('"own"', f'"{name}"')}
        for name in ("first", "second")
    ]

    rows = run(lab, *ideas)

    assert [row.decision for row in rows[:1]] == ["keep"]
    assert found(lab, 0) == [[], ["own"], ["own"]]
    assert all(names == ["own"] for n in (1, 2) for names in found(lab, n))
    assert [p.name for p in compile_cache.cache_folder(lab, "train").iterdir()] == [
        "own"
    ]


def test_links_and_too_much_are_not_kept(tmp_path):
    lab, scratch = line_lab(tmp_path / "lab"), tmp_path / "scratch"
    scratch.mkdir()
    lent(lab, scratch)
    (scratch / ".compiled" / "link").symlink_to("/etc/passwd")
    os.mkfifo(scratch / ".compiled" / "pipe")

    compile_cache.store_compiled(lab, OWN, scratch, "train")
    assert not compile_cache.cache_folder(lab, "train").exists()

    (scratch / ".compiled" / "code").write_text("x")
    compile_cache.store_compiled(lab, OWN, scratch, "train")
    assert [p.name for p in compile_cache.cache_folder(lab, "train").iterdir()] == [
        "code"
    ]


def test_what_is_kept_belongs_to_one_file_of_the_persons(tmp_path):
    """`check`, then an edit, then the baseline: it begins with nothing."""
    lab = line_lab(tmp_path / "lab")
    seconds = []
    for source, name, took in (("a", "x", 50.0), ("a", "y", 6.0), ("b", "z", 9.0)):
        scratch, own = tmp_path / name, replace(OWN, source=source)
        scratch.mkdir()
        compile_cache.discard_other_blobs(lab, compute_blob_id(source))
        lent(lab, scratch)
        (scratch / ".compiled" / name).write_text(name)
        compile_cache.store_compiled(lab, own, scratch, "train", took)
        seconds.append(compile_cache.load_note(lab, "train").seconds)

    found = sorted(
        path.name for path in compile_cache.cache_folder(lab, "train").iterdir()
    )
    assert found == ["z"]
    assert seconds == [50.0, 50.0, 9.0]
    (note,) = compile_cache.cache_folder(lab, "train").parent.glob("*.json")
    note.write_text("{not a note")
    assert compile_cache.load_note(lab, "train") == compile_cache.CacheNote()


def test_check_compiles_for_the_night_and_forecasts_with_its_second_run(
    lab, monkeypatch
):
    monkeypatch.setattr(session, "uses_warm_pool", lambda *_: True)

    said = check.check(lab, ["search"], 1.0)
    rows = run(lab)

    assert found(lab, 0) == [["own"]] * len(found(lab, 0))
    assert [row.decision for row in rows] == ["keep"]
    assert said.first_startup_seconds > 0
    assert said.to_json()["startup_seconds"] == said.run.startup_seconds
    assert "the first" in "\n".join(said.to_lines())
    assert not list((lab.state_folder / "runs").glob("*"))
    assert process.sweep(lab.folder) == 0


def test_a_note_without_what_it_is_about_says_nothing(tmp_path):
    """Or a slow `check` of another file would stretch the limit of start-up."""
    lab, scratch = line_lab(tmp_path / "lab"), tmp_path / "scratch"
    scratch.mkdir()
    lent(lab, scratch)
    (scratch / ".compiled" / "code").write_text("x")
    compile_cache.store_compiled(lab, OWN, scratch, "train", 170.0)
    store = compile_cache.cache_folder(lab, "train")

    store.rename(store.with_name("old-killed"))
    assert compile_cache.load_note(lab, "train").seconds == 0.0

    (store.parent / "half-killed").mkdir()
    compile_cache.remove_leftovers(lab)
    assert [path.suffix for path in store.parent.iterdir()] == [".json"]


def test_a_champion_checked_in_a_clone_lends_nothing_after_rebuild(lab, tmp_path):
    """There were no books yet, so nobody knew that a candidate had written it."""
    source = lab.read_file("train.py").replace("RATE = 0.01", "RATE = 0.02")
    run(lab, {"title": "better", "source": source.replace('"own"', '"a candidate"')})
    clone = Lab(tmp_path / "clone")
    refs = "refs/autoresearch/*:refs/autoresearch/*"
    for words in (
        ("clone", "-q", str(lab.folder), str(clone.folder)),
        ("-C", str(clone.folder), "fetch", "-q", "origin", refs),
    ):
        subprocess.run(("git", *words), check=True)
    assert '"a candidate"' in clone.read_file("train.py")
    check.check(clone, ["search"], 1.0)
    kept = compile_cache.cache_folder(clone, "train")
    assert [path.name for path in kept.iterdir()] == ["a candidate"]

    command(clone, "rebuild")

    assert not kept.exists()


def test_what_a_checked_file_compiled_does_not_reach_a_changed_one(lab, monkeypatch):
    monkeypatch.setattr(session, "uses_warm_pool", lambda *_: True)
    check.check(lab, ["search"], 1.0)
    source = lab.read_file("train.py").replace('"own"', '"edited"')
    lab.file_path("train.py").write_text(source)

    run(lab)

    checked, first, *others = found(lab, 0)
    assert checked == ["own"]  # its second run: what its first had made
    assert first == []
    assert all(names == ["edited"] for names in others)


def test_after_the_first_night_a_check_keeps_nothing(lab):
    run(lab)
    before = compile_cache.load_note(lab, "train")
    lab.file_path("train.py").write_text(
        lab.read_file("train.py").replace('"own"', '"later"')
    )

    said = check.check(lab, ["search"], 1.0)

    assert said.first_startup_seconds is None
    assert compile_cache.load_note(lab, "train") == before
    assert [p.name for p in compile_cache.cache_folder(lab, "train").iterdir()] == [
        "own"
    ]


def test_nobody_elses_is_ever_kept(tmp_path):
    lab, scratch = line_lab(tmp_path / "lab"), tmp_path / "scratch"
    scratch.mkdir()
    compile_cache.copy_to_scratch(lab, scratch, "train")
    assert not (scratch / ".compiled").exists()
    (scratch / ".compiled").mkdir()
    (scratch / ".compiled" / "planted").write_text("x")

    compile_cache.store_compiled(lab, OTHERS, scratch, "train")

    assert not compile_cache.cache_folder(lab, "train").exists()


def test_a_failure_is_named_by_its_error_and_not_by_the_advice_after_it():
    log = b"step 3\ntorch._inductor.exc.InductorError: no compiler\n\nSet VERBOSE=1\n\n"

    assert last_error_line(log) == "torch._inductor.exc.InductorError: no compiler"
    assert last_error_line(b"Error: early\n" + b"step\n" * 20) == "step"
    assert last_error_line(b"\n\n") == ""
