"""A GPU's health in every row, and runs that it made void; NVML is a recording."""

import json
import time
from dataclasses import replace

import pytest

from autoresearch.devices import monitor
from autoresearch.devices.monitor import GpuMonitor
from autoresearch.loop import research
from autoresearch.measure.worker import Worker
from autoresearch.pools.inline import InlinePool
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.sandbox.process import StopFlag
from autoresearch.stats.early_stopping import Pruner
from tests.nights import command, line_lab, rate, script
from tests.test_chips import RECORDED, answering

REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
FAST = 'budget_seconds = 1\nbudget_tolerance_seconds = 0.5\npolicy = "noise-aware"'
# The same hypothesis at a hundredth of the pace.
SLOW = ("run.spent(BATCH)", "import time; time.sleep(0.01); run.spent(BATCH)")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(monitor, "EVERY_SECONDS", 0.1)


def sick(sample):
    return answering({**sample, REASONS: 0x40})


class Card:
    """NVML of a card that may fall ill when an experiment starts."""

    def __init__(self, ill_at):
        self.ill_at = ill_at
        self.ill = False
        self.starts = []

    def __call__(self, candidate, progress):
        """What a bench tells of its runs."""
        if progress.phase == "starting":
            self.starts.append(candidate.proposal.number)
            self.ill = candidate.proposal.number == self.ill_at

    def nvml(self, slot):
        training = RECORDED["training"]
        return sick(training) if self.ill else answering(training)


def rows_of(lab, card, *proposals):
    asked = session.SessionOptions(proposers=(script(lab, *proposals),), seed=1)
    with session.open_session(lab, asked, StopFlag()) as (opened, now):
        bench = replace(opened.workbench, nvml=card.nvml, watch=card)
        pool = InlinePool(Worker(bench), opened.devices)
        return list(research(replace(opened, workbench=bench, pool=pool))), now.notices


def slowed(lab):
    return {"title": "slower", "source": lab.read_file("train.py").replace(*SLOW)}


def test_a_monitor_samples_until_the_run_is_over():
    with GpuMonitor(answering(RECORDED["training"]), set) as monitor:
        time.sleep(0.35)

    told = dict(monitor.health_summary)
    assert told["gpu_clock_mhz"] == 1650
    assert told["gpu_slowdowns"] == "software power cap"
    assert (
        "another process" in monitor.interference
    )  # two of them, and none is the run's


def test_without_a_gpu_there_is_nothing_to_tell():
    with GpuMonitor(None, set) as monitor:
        pass

    assert monitor.health_summary == ()
    assert monitor.interference is None


def test_every_row_says_how_the_gpu_was(tmp_path):
    lab = line_lab(tmp_path / "lab", FAST)
    rows, _ = rows_of(lab, Card(ill_at=None), rate(0.02))

    for row in rows:
        assert dict(row.health)["gpu_watts"] == pytest.approx(692.4, abs=0.1)
    shown = json.loads(command(lab, "show", "1", "--json").stdout)
    assert shown["health"]["gpu_slowdowns"] == "software power cap"
    assert "health    slowdowns software power cap" in command(lab, "show", "1").stdout


def test_a_run_that_heat_slowed_down_is_repeated_twice_and_then_counts(tmp_path):
    lab = line_lab(tmp_path / "lab", FAST)
    card = Card(ill_at=1)
    rows, notices = rows_of(lab, card, slowed(lab))

    assert card.starts.count(1) == 3 * rows[1].runs
    assert dict(rows[1].health)["gpu_slowdowns"] == "hardware thermal slowdown"
    assert any("void and is repeated: hardware thermal" in note for note in notices)


def test_a_change_that_is_slow_by_itself_counts_at_once(tmp_path):
    lab = line_lab(tmp_path / "lab", FAST)
    card = Card(ill_at=None)
    # Two processes on the card would be a neighbour; the recording has two.
    card.nvml = lambda slot: answering(
        {**RECORDED["training"], "nvmlDeviceGetComputeRunningProcesses": []}
    )
    rows, notices = rows_of(lab, card, slowed(lab))

    assert card.starts.count(1) == rows[1].runs
    assert notices == []


def test_a_repeated_run_is_followed_from_its_start():
    outlook = Pruner((), 1.0, None, schedule=False, spare=False, lower_is_better=True)
    once = [outlook(share / 100, 2.0) for share in range(100)]
    before = outlook.curve
    outlook.reset()

    assert outlook.curve == ()
    assert [outlook(share / 100, 2.0) for share in range(100)] == once
    assert outlook.curve == before


def test_health_is_part_of_the_chain(tmp_path):
    lab = line_lab(tmp_path / "lab", FAST)
    rows_of(lab, Card(ill_at=None))
    ledger = Ledger(lab.ledger_path)
    ledger.db.execute("update run set health = '[]' where id = 1")
    ledger.close()

    done = command(lab, "verify-ledger")
    assert done.returncode != 0
    assert "run 1 was changed after it was written" in done.stdout + done.stderr
