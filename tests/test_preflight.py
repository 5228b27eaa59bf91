"""Preflight: the broken are caught before they cost a run, the sound pass."""

import os
import signal

import pytest

from autoresearch.commands import new
from autoresearch.experiment import Proposal
from autoresearch.git import Repository
from autoresearch.guest import dry_run
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure import preflight
from autoresearch.measure.preflight import (
    DryRunReport,
    find_contract_fault,
    shrink_source,
)
from autoresearch.measure.workbench import Workbench
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.sandbox.process import StopFlag
from benchmarks import edits
from tests import nights

pytest.importorskip("torch")
# One of each kind; benchmarks/proposing.py has them all.
CAUGHT = {
    "misspelt function": "AttributeError",
    "gated MLP, down too wide": "shapes cannot be multiplied",
    "window off by one": "not causal",
    "batch norm across rows": "not causal",
    "no submit": "never calls run.submit",
    "begin takes the model": "takes build_model itself",
    "submits early": "of the budget",
    "a parameter made after building": "differ in extra",
    "rates of a million": "not finite",
    "never looks at progress": "trains on after its budget",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The flagship, small."""
    folder = tmp_path_factory.mktemp("gpt") / "lab"
    new.create_lab(folder, "gpt", None, None, "demo")
    shipped = folder / "train.py"
    shipped.rename(folder / "shipped.py")
    shipped.write_text(edits.flagship("demo"))
    return Lab.find(folder)


@pytest.fixture(scope="module")
def flight(lab):
    """Preflight of that lab."""
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    terms = session.terms_from_program(lab.load_program(), ())
    bench = Workbench(
        lab, found, terms, StopFlag(), lambda candidate, progress: None, nights.walls()
    )
    found = preflight.Preflight(bench, Ledger(lab.ledger_path))
    yield found
    found.close()


@pytest.mark.parametrize("name", CAUGHT)
def test_a_broken_edit_is_caught_with_a_reason(lab, flight, name):
    broken = dict(edits.broken_for(lab.read_file("train.py"), CAUGHT))

    if why := find_contract_fault(broken[name]):
        assert CAUGHT[name] in why
        return
    found = flight.dry_run(broken[name])

    assert CAUGHT[name] in found.fault
    assert found.is_in_time


SOUND = ["as it is", "as shipped", "gated MLP", "tokens read by hand"]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_edit_passes(lab, flight, name):
    source = lab.read_file("train.py")
    files = {"as it is": source, **dict(edits.sound(source))}
    files["as shipped"] = lab.read_file("shipped.py")

    found = flight.dry_run(files[name])

    assert found.fault == ""
    assert found.parameters > 10_000
    assert found.bytes_per_token > 0


def test_a_lab_without_tensors_is_rehearsed_as_well(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")
    asked = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        flight = preflight.Preflight(opened.workbench, opened.recorder.ledger)
        good = flight.dry_run(lab.read_file("train.py"))
        bad = flight.dry_run(
            lab.read_file("train.py").replace(
                "speed_w = speed_b = 0.0", "speed_w = 0.0"
            )
        )

    assert good.fault == ""
    assert "NameError" in bad.fault


def test_a_model_hears_at_once_what_a_run_would_have_found(tmp_path):
    from autoresearch.proposers.toolkit import open_toolkit

    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab, nights.rate(0.02))
    asked = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        ledger = opened.recorder.ledger
        desk = open_toolkit(lab.folder, lab.load_program())
        desk.check_proposal = preflight.Preflight(opened.workbench, ledger)
        source, before = ledger.load_source(ledger.champion.blob), ledger.run_count
        bad = source.replace("BATCH)\n", "BATCHES)\n", 1)
        said = desk.find_fault(
            ledger, Proposal(None, "x", bad, ledger.champion.blob, "m")
        )
        after = ledger.run_count

    assert said.startswith("preflight: ")
    assert after == before


def test_where_the_champion_cannot_be_rehearsed_nothing_is_refused(
    tmp_path, monkeypatch
):
    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab, nights.rate(0.02))
    asked = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        flight = preflight.Preflight(opened.workbench, opened.recorder.ledger)
        monkeypatch.setattr(preflight, "LIMIT_SECONDS", 0.01)
        source = opened.recorder.ledger.load_source(
            opened.recorder.ledger.champion.blob
        )
        said = flight(Proposal(None, "x", source.replace("0.5", "z"), "", "m"))

    assert said == ""


def test_memory_is_judged_by_what_the_champion_took():
    small_one = DryRunReport("", 1_000_000, 1000.0, 1000)
    large_one = DryRunReport("", 1_000_000, 1000.0, 100_000)

    assert small_one.estimated_bytes == 17e6
    assert large_one.estimated_bytes / small_one.estimated_bytes > 6


def test_sizes_are_turned_down_only_where_constants_name_them(lab):
    source = lab.read_file("train.py").replace("DEPTH = 2", "DEPTH = 9")

    assert "\nDEPTH = 4  #" in shrink_source(source)
    assert shrink_source("x = 1\n") == "x = 1\n"


def test_a_forged_answer_is_read_as_what_it_is():
    said = preflight.parse_report({"fault": "\x1b[2J" + "x" * 999, "parameters": 1e99})

    assert "\x1b" not in said.fault
    assert len(said.fault) <= 300
    assert said.parameters == 0
    assert preflight.parse_report({}).fault == "reported nothing"


@pytest.fixture
def small_flight(tmp_path):
    """Preflight of lab line: (it, a file that passes)."""
    lab = nights.line_lab(tmp_path / "lab")
    asked = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        flight = preflight.Preflight(opened.workbench, opened.recorder.ledger)
        yield flight, lab.read_file("train.py")
        flight.close()


def test_no_file_runs_in_a_process_that_ran_another(small_flight):
    flight, good = small_flight
    leaves = "import builtins\nbuiltins.mark = 1\nopen('mark', 'w').close()\n"
    looks = "import builtins, os\nassert not hasattr(builtins, 'mark')\nassert not os.path.exists('mark')\n"

    assert flight.dry_run(leaves + good).fault == ""
    assert flight.dry_run(looks + good).fault == ""


def test_a_guest_that_died_while_it_waited_is_not_the_fault_of_a_file(small_flight):
    flight, good = small_flight
    assert flight.dry_run(good).fault == ""

    for pid in flight._waiting._process.list_pids():
        os.kill(pid, signal.SIGKILL)

    found = flight.dry_run(good)
    assert found.fault == ""
    assert found.is_in_time


def test_a_night_that_is_over_leaves_nobody_waiting(small_flight):
    flight, good = small_flight
    flight.dry_run(good)
    lab = flight._workbench.lab
    assert nights.guests_of(lab)

    flight.close()

    nights.wait_for(lambda: not nights.guests_of(lab), what="the end of all guests")
    assert flight(Proposal(None, "x", good, "", "m")) == ""


def test_numbers_that_a_file_writes_down_are_not_changed_under_it():
    found = dry_run.find_integer_literals(
        "a = 2**13\nb = 1 << 9\nc = nn.Embedding(4096, 8)\n"
    )

    assert {8192, 512, 4096, 8} <= found
    assert len(dry_run.find_integer_literals("x = 9 ** 9 ** 9 ** 9\n")) == 2  # and ends
