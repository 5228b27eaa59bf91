"""Preflight: the broken are caught before they cost a run, the sound pass."""

import pytest

from autoresearch import apparatus, founding, night, preflight
from autoresearch.cage import Stop
from autoresearch.experiment import Proposal
from autoresearch.lab import Lab
from autoresearch.ledger import Ledger
from autoresearch.notebook import Notebook
from autoresearch.preflight import Rehearsed, broken_contract, small
from autoresearch.sandbox import Bench
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
    "submits early": "of the budget",
    "a parameter made after building": "differ in extra",
    "rates of a million": "not finite",
    "never looks at progress": "trains on after its budget",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The flagship, small."""
    folder = tmp_path_factory.mktemp("gpt") / "lab"
    founding.found(folder, "gpt", None, None, "demo")
    shipped = folder / "train.py"
    shipped.rename(folder / "shipped.py")
    shipped.write_text(edits.flagship("demo"))
    return Lab.find(folder)


@pytest.fixture(scope="module")
def flight(lab):
    """Preflight of that lab."""
    found = apparatus.load(lab, Notebook(lab.folder))
    terms = night.terms_of(lab.program(), ())
    bench = Bench(
        lab, found, terms, Stop(), lambda candidate, progress: None, nights.walls()
    )
    return preflight.Preflight(bench, Ledger(lab.ledger))


@pytest.mark.parametrize("name", CAUGHT)
def test_a_broken_edit_is_caught_with_a_reason(lab, flight, name):
    broken = dict(edits.broken_for(lab.read("train.py"), CAUGHT))

    if why := broken_contract(broken[name]):
        assert CAUGHT[name] in why
        return
    found = flight.rehearse(broken[name])

    assert CAUGHT[name] in found.fault
    assert found.in_time


SOUND = ["as it is", "as shipped", "gated MLP", "tokens read by hand"]


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_edit_passes(lab, flight, name):
    source = lab.read("train.py")
    files = {"as it is": source, **dict(edits.sound(source))}
    files["as shipped"] = lab.read("shipped.py")

    found = flight.rehearse(files[name])

    assert found.fault == ""
    assert found.parameters > 10_000
    assert found.bytes_per_token > 0


def test_a_lab_without_tensors_is_rehearsed_as_well(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")
    asked = night.Options(proposers=("mailbox",))
    with night.opened(lab, asked, Stop()) as (opened, _):
        flight = preflight.Preflight(opened.bench, opened.books.ledger)
        good = flight.rehearse(lab.read("train.py"))
        bad = flight.rehearse(
            lab.read("train.py").replace("speed_w = speed_b = 0.0", "speed_w = 0.0")
        )

    assert good.fault == ""
    assert "NameError" in bad.fault


def test_a_model_hears_at_once_what_a_run_would_have_found(tmp_path):
    from autoresearch.proposers.desk import desk_of

    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab, nights.rate(0.02))
    asked = night.Options(proposers=("mailbox",))
    with night.opened(lab, asked, Stop()) as (opened, _):
        ledger = opened.books.ledger
        desk = desk_of(lab.folder, lab.program())
        desk.check = preflight.Preflight(opened.bench, ledger)
        source = ledger.source(ledger.champion.blob)
        bad = source.replace("BATCH)\n", "BATCHES)\n", 1)
        said = desk.fault(ledger, Proposal(None, "x", bad, ledger.champion.blob, "m"))
        runs = ledger.counts()["runs"]

    assert said.startswith("preflight: ")
    assert runs == 5  # three of the baseline, two of the champion


def test_where_the_champion_cannot_be_rehearsed_nothing_is_refused(
    tmp_path, monkeypatch
):
    lab = nights.line_lab(tmp_path / "lab")
    nights.run(lab, nights.rate(0.02))
    asked = night.Options(proposers=("mailbox",))
    with night.opened(lab, asked, Stop()) as (opened, _):
        flight = preflight.Preflight(opened.bench, opened.books.ledger)
        monkeypatch.setattr(preflight, "LIMIT_SECONDS", 0.01)
        source = opened.books.ledger.source(opened.books.ledger.champion.blob)
        said = flight(Proposal(None, "x", source.replace("0.5", "z"), "", "m"))

    assert said == ""


def test_memory_is_judged_by_what_the_champion_took():
    small_one = Rehearsed("", 1_000_000, 1000.0, 1000)
    large_one = Rehearsed("", 1_000_000, 1000.0, 100_000)

    assert small_one.estimate_bytes == 17e6
    assert large_one.estimate_bytes / small_one.estimate_bytes > 6


def test_sizes_are_turned_down_only_where_constants_name_them(lab):
    source = lab.read("train.py").replace("DEPTH = 2", "DEPTH = 9")

    assert "\nDEPTH = 4  #" in small(source)
    assert small("x = 1\n") == "x = 1\n"


def test_a_forged_answer_is_read_as_what_it_is():
    said = preflight.read({"fault": "\x1b[2J" + "x" * 999, "parameters": 1e99})

    assert "\x1b" not in said.fault
    assert len(said.fault) <= 300
    assert said.parameters == 0
    assert preflight.read({}).fault == "said nothing"
