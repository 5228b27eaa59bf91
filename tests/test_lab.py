"""A lab: three files, the places beside them, and one run at a time."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from autoresearch.atomic_file import write_whole
from autoresearch.errors import LabBusy, LabError
from autoresearch.git import compute_blob_id
from autoresearch.lab import folder as lab_module
from autoresearch.lab.folder import LAB_FILES, LARGEST_FILE_BYTES, Lab

HOLD = """
import sys, time
from pathlib import Path
from autoresearch.lab.folder import Lab
with Lab.find(Path(sys.argv[1])).hold_lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    for name in LAB_FILES:
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path.resolve()


def complaint(call) -> str:
    with pytest.raises(LabError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- finding it ------------------------------------------------------------------------


def test_a_lab_is_found_from_any_folder_inside_it(folder):
    inside = folder / "notes" / "old"
    inside.mkdir(parents=True)

    assert Lab.find(folder).folder == folder
    assert Lab.find(inside).folder == folder


def test_a_lab_is_found_through_a_link_under_its_true_name(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "lab"
    link.symlink_to(folder)

    assert Lab.find(link).folder == folder


def test_a_folder_that_is_no_lab_is_told_what_to_type(tmp_path):
    assert "Next: autoresearch new" in complaint(lambda: Lab.find(tmp_path))
    complaint(lambda: Lab.find(tmp_path / "does" / "not" / "exist"))


@pytest.mark.parametrize("missing", LAB_FILES)
def test_a_lab_that_lacks_a_file_is_told_which(folder, missing):
    (folder / missing).unlink()

    assert missing in complaint(lambda: Lab.find(folder))


@pytest.mark.parametrize("name", ["prepare.py", "train.py", "program.md"])
def test_a_folder_in_a_files_place_is_a_missing_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()

    assert name in complaint(lambda: Lab.find(folder))


def test_files_that_cannot_be_used_are_one_clear_sentence(folder):
    lab = Lab.find(folder)
    (folder / "train.py").write_bytes(b"x = '\xff'\n")
    (folder / "program.md").write_bytes(b"x" * (LARGEST_FILE_BYTES + 1))

    assert "not UTF-8" in complaint(lambda: lab.read_file("train.py"))
    assert "larger than 1 MB" in complaint(lambda: lab.read_file("program.md"))
    assert "cannot be read" in complaint(lambda: lab.read_file("notes.md"))


def test_a_text_is_read_as_it_stands_line_endings_and_all(folder):
    (folder / "train.py").write_bytes(b"a\r\nb\rc\n")

    assert Lab.find(folder).read_file("train.py") == "a\r\nb\rc\n"


def test_program_md_is_read_afresh(folder):
    lab = Lab.find(folder)
    (folder / "program.md").write_text("```toml\nbudget_seconds = 7\n```\n")

    assert lab.load_program().budget_seconds == 7


# -- its own places --------------------------------------------------------------------


def test_what_the_harness_keeps_is_invisible_to_git(folder):
    lab = Lab.find(folder)
    (lab.log_folder / "0-1.log").touch()
    subprocess.run(("git", "init", "-q"), cwd=folder, check=True)

    said = subprocess.check_output(("git", "status", "--porcelain"), cwd=folder)

    assert b".autoresearch" not in said
    assert lab.ledger_path.parent == lab.state_folder


def test_a_file_in_the_place_of_the_state_folder_is_one_clear_sentence(folder):
    (folder / ".autoresearch").touch()

    assert ".autoresearch" in complaint(lambda: Lab.find(folder).state_folder)


def test_a_full_disk_is_one_clear_sentence(folder, monkeypatch):
    Lab.find(folder).require_disk_space()

    monkeypatch.setattr(lab_module, "FREE_BYTES_NEEDED", 1 << 62)
    assert "disk" in complaint(Lab.find(folder).require_disk_space)


@pytest.mark.parametrize("text", ["", "x\n", "no newline", "a\r\nb", "Δ ± é 日本"])
def test_a_blob_has_the_name_git_gives_it(folder, text):
    (folder / "train.py").write_bytes(text.encode())

    told = subprocess.check_output(
        ("git", "hash-object", "--no-filters", "train.py"), cwd=folder, text=True
    )

    assert compute_blob_id(text) == told.strip()


def test_a_file_is_written_whole_or_not_at_all(folder):
    path = folder / "results.tsv"
    texts = ["a\n" * 50_000, "b\n" * 70_000]
    write_whole(path, texts[0])
    done = threading.Event()

    def rewrite():
        for turn in range(60):
            write_whole(path, texts[turn % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = {path.read_text() for _ in iter(done.is_set, True)}
    writer.join()

    assert seen <= set(texts)
    assert not list(folder.glob(".results*"))


def test_threads_that_write_one_file_do_not_trip_over_each_other(folder):
    path = folder / "results.tsv"

    def rewrite():
        for _ in range(50):
            write_whole(path, "same\n")

    threads = [threading.Thread(target=rewrite) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert path.read_text() == "same\n"
    assert not list(folder.glob(".results*"))


def test_a_text_is_written_as_utf_8_whatever_the_language_of_the_machine(folder):
    path = folder / "table.tsv"
    code = (
        "from pathlib import Path; from autoresearch.atomic_file import write_whole\n"
        f"write_whole(Path({str(path)!a}), '\\u0394bpb \\xb1 0.1\\r\\n')\n"
    )
    latin = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    subprocess.run((sys.executable, "-c", code), env=os.environ | latin, check=True)

    assert path.read_bytes() == "Δbpb ± 0.1\r\n".encode()


# -- one run at a time -----------------------------------------------------------------


@pytest.fixture
def holder(folder):
    """Another process that holds the lab."""
    process = subprocess.Popen(
        (sys.executable, "-c", HOLD, str(folder)), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lab_in_use_says_by_whom_and_what_to_type(folder, holder):
    lab = Lab.find(folder)

    with (
        pytest.raises(LabBusy, match=rf"process {holder.pid}\).*Next:"),
        lab.hold_lock(),
    ):
        pytest.fail("two runs held one lab")
    assert lab.find_lock_holder() == holder.pid


def test_a_killed_run_lets_go_of_the_lab(folder, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    with Lab.find(folder).hold_lock():
        assert Lab.find(folder).find_lock_holder() == os.getpid()
    assert Lab.find(folder).find_lock_holder() is None


def test_two_runs_of_one_process_cannot_hold_a_lab_either(folder):
    lab = Lab.find(folder)

    with lab.hold_lock(), pytest.raises(LabBusy), lab.hold_lock():
        pytest.fail("held twice")
    with lab.hold_lock():
        pass


def test_the_lab_is_let_go_when_the_run_fails(folder):
    lab = Lab.find(folder)

    with pytest.raises(ZeroDivisionError), lab.hold_lock():
        1 / 0  # noqa: B018

    assert lab.find_lock_holder() is None


def test_children_of_a_run_do_not_hold_the_lab_after_it(folder):
    lab = Lab.find(folder)
    with lab.hold_lock():
        child = subprocess.Popen(("sleep", "60"), close_fds=False)

    assert lab.find_lock_holder() is None
    with lab.hold_lock():
        pass
    child.kill()
    child.wait()


def test_a_view_that_keeps_asking_does_not_make_a_lab_look_busy(folder):
    lab = Lab.find(folder)
    done = threading.Event()

    def ask():
        while not done.is_set():
            lab.find_lock_holder()

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(20):
            with lab.hold_lock():
                time.sleep(0.001)
    finally:
        done.set()
        for thread in asking:
            thread.join()


def test_nobody_holds_a_lab_that_never_ran(folder):
    assert Lab.find(folder).find_lock_holder() is None
