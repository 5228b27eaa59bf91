"""Labs and nights for tests: real folders, real git, real processes."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch.commands import new
from autoresearch.experiment import Device
from autoresearch.git import Repository
from autoresearch.lab.folder import Lab
from autoresearch.loop import research
from autoresearch.measure.workbench import host_paths
from autoresearch.run import session
from autoresearch.sandbox import process, selftest
from autoresearch.sandbox.process import SandboxBackend, StopFlag

AUTORESEARCH = (sys.executable, "-m", "autoresearch")


@functools.cache
def walls() -> SandboxBackend:
    """The best cage this machine gives."""
    with tempfile.TemporaryDirectory() as place:
        return selftest.find_best_backend(host_paths(Lab(Path(place))), Device())[0]


def line_lab(folder: Path, fence: str = "", train: str | None = None) -> Lab:
    """Lab `line`, committed; `fence` replaces the settings of its program.md."""
    new.create_lab(folder, "line", None, None, None, walls().level)
    lab = Lab.find(folder)
    if fence:
        if "cage" not in fence:
            fence += f'\ncage = "{walls().level}"'
        prose = lab.read_file("program.md").rpartition("```")[2]
        lab.file_path("program.md").write_text(f"```toml\n{fence}\n```\n{prose}")
    if train is not None:
        lab.file_path("train.py").write_text(train)
    book = Repository(folder)
    book.run_git("add", "program.md", "train.py")
    who = {
        f"GIT_{who}_{what}": "t"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    if book.run_git("status", "--porcelain"):
        book.run_git("commit", "-q", "-m", "as the test wants it", who=who)
    return lab


def script(lab: Lab, *proposals: dict) -> str:
    """A proposer that proposes these, in order; lies in the lab's own state folder."""
    (lab.state_folder / "script.json").write_text(json.dumps(proposals))
    return "script:.autoresearch/script.json"


def rate(value: float, title: str | None = None) -> dict:
    """The proposal to set line's learning rate."""
    return {"title": title or f"rate {value:g}", "set": {"LEARNING_RATE": value}}


def run(lab: Lab, *proposals: dict, stop: StopFlag | None = None, **options):
    """A night over these proposals, in this process; its verdicts."""
    asked = session.SessionOptions(
        proposers=(script(lab, *proposals),), seed=1, **options
    )
    with session.open_session(lab, asked, stop or StopFlag()) as (opened, _):
        return list(research(opened))


def command(lab: Lab | Path, *words: str, **more) -> subprocess.CompletedProcess:
    """`autoresearch ...` in the lab, as a person types it."""
    folder = lab.folder if isinstance(lab, Lab) else lab
    return subprocess.run(
        (*AUTORESEARCH, *words),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


def start(lab: Lab, *words: str) -> subprocess.Popen:
    """`autoresearch ...` in the lab, left running."""
    return subprocess.Popen(
        (*AUTORESEARCH, *words),
        cwd=lab.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds: float = 20.0, what: str = "it") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.02)


def guests_of(lab: Lab) -> list[int]:
    """Processes that still belong to this lab's runs."""
    mark, found = (
        f"{process.MARK_VARIABLE}={process.compute_mark(lab.folder)}".encode(),
        [],
    )
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                pass
    return found


def trains(lab: Lab, title: str) -> bool:
    """Whether a run of this title is in hand (and not only the probe of the cage)."""
    return (
        lab.live_status_path.exists()
        and title in lab.live_status_path.read_text()
        and bool(guests_of(lab))
    )


def kill(process: subprocess.Popen) -> None:
    """kill -9, and wait."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
