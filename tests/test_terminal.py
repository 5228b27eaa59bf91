"""A night in a real terminal: whatever happens to the window, the night goes on."""

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time

import pytest

from autoresearch.records.ledger import Ledger
from tests.nights import AUTORESEARCH, line_lab, rate, script

SLOW = ("points = json", "import time; time.sleep(0.7)\npoints = json")


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


def take_terminal():
    """In the child: stdin becomes its controlling terminal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def start_in_terminal(lab, *words):
    """(`autoresearch ...` as the leader of a terminal, the terminal's other end)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        (*AUTORESEARCH, *words),
        cwd=lab.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    return process, ours


def read_until(terminal, words, seconds=60.0):
    """What the terminal shows, up to these words."""
    shown, deadline = "", time.monotonic() + seconds
    while words not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


def slow_night(lab):
    """A proposer with three ideas that take a moment."""
    source = lab.read_file("train.py").replace(*SLOW)
    assert "sleep" in source
    ideas = [rate(0.0001 * n) for n in range(1, 4)]
    return script(lab, {"title": "slow", "source": source}, *ideas)


def decided(lab):
    ledger = Ledger(lab.ledger_path)
    rows = ledger.load_rows()
    ledger.close()
    return [row.number for row in rows]


def test_a_closed_window_ends_no_night(lab):
    night = ("run", "--experiments", "4", "--proposer", slow_night(lab))
    process, terminal = start_in_terminal(lab, *night)
    read_until(terminal, "baseline")

    os.close(terminal)  # SIGHUP to the whole session, and every write fails from now on

    assert process.wait(timeout=120) == 0
    assert decided(lab) == [0, 1, 2, 3, 4]
    log = (lab.state_folder / "run.log").read_text()
    assert len(re.findall(r"rate 0\.000", log)) >= 3
    assert "Traceback" not in log


def test_a_reader_that_goes_away_ends_no_night(lab):
    """`autoresearch run --json | head -1`."""
    night = ("run", "--experiments", "4", "--proposer", slow_night(lab), "--json")
    process = subprocess.Popen(
        (*AUTORESEARCH, *night),
        cwd=lab.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    process.stdout.readline()
    process.stdout.close()

    process.wait(timeout=120)
    assert decided(lab) == [0, 1, 2, 3, 4]


def test_a_terminal_of_no_width_is_written_to_all_the_same(lab):
    """Some terminals say 0 columns; a display never ends a night."""
    night = ("run", "--experiments", "1", "--proposer", slow_night(lab))
    process, terminal = start_in_terminal(lab, *night)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\0" * 8)

    shown = read_until(terminal, "Next: autoresearch report")

    assert process.wait(timeout=60) == 0
    assert "slow" in shown
    os.close(terminal)
