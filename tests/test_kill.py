"""kill -9 at any moment: the short form of benchmarks/kill.py."""

import random
import time

from autoresearch.records.ledger import Ledger
from benchmarks import kill
from tests import nights


def test_killed_again_and_again_a_night_loses_and_doubles_nothing(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab)
    kill.queue_proposals(lab, 6)

    unclean = kill.survive(lab, 8, 1.0, random.Random(2))
    kill.finish(lab, 6)

    assert unclean == []
    assert kill.audit(lab, 6) == ([], [], [])


def test_a_kill_in_the_middle_of_a_run_leaves_no_process(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab)
    mine = lab.state_folder / "mine.py"
    source = lab.read_file("train.py")
    mine.write_text(
        source.replace("points = json", "import time; time.sleep(99)\npoints = json")
    )
    nights.command(lab, "try", str(mine), "sleeps")
    night = nights.start(lab, "run", "--proposer", "mailbox")
    nights.wait_for(lambda: nights.trains(lab, "sleeps"), what="the run")
    time.sleep(0.3)

    nights.kill(night)

    nights.wait_for(lambda: not nights.guests_of(lab), what="the end of the guests")
    assert [p.title for p in Ledger(lab.ledger_path).load_open_proposals()] == [
        "sleeps"
    ]
