"""`replicate` and `ablate`: real runs of lab line, real pairs, real removals."""

import json

import pytest

from autoresearch.commands import ablate, replicate
from autoresearch.errors import LabError
from autoresearch.git import Repository
from autoresearch.records.ledger import Ledger
from autoresearch.sandbox.process import StopFlag
from tests.nights import command, line_lab, rate, run


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


@pytest.fixture
def greedy(tmp_path):
    """A lab whose champion is two steps from its baseline."""
    lab = line_lab(tmp_path / "greedy", 'budget_tokens = 2000\npolicy = "greedy"')
    rows = run(lab, rate(0.02), {"title": "momentum", "set": {"MOMENTUM": 0.7}})
    assert [row.decision for row in rows] == ["keep", "keep", "keep"]
    return lab


# -- replicate -------------------------------------------------------------------------


def test_pairs_share_fresh_seeds_and_are_scored_on_the_holdout(lab):
    run(lab, rate(0.02))
    done = command(lab, "replicate", "--pairs", "3", "--json")

    found = json.loads(done.stdout)
    assert found["pairs"] == found["holdout_pairs"] == 3
    assert found["low"] < found["gain"] < found["high"]
    assert found["gap"] == pytest.approx(found["gain"] - found["holdout_gain"])
    ledger = Ledger(lab.ledger_path)
    first, best = (
        [m for m in ledger.load_run_records(number) if m.occasion == "replicate"]
        for number in (0, 1)
    )
    assert [m.seed for m in first] == [m.seed for m in best]
    others = [m.seed for m in ledger.load_run_records(0) if m.occasion == "verdict"]
    assert not {m.seed for m in first} & set(others)
    assert command(lab, "verify-ledger").returncode == 0


def test_a_second_call_goes_on_where_the_first_one_stopped(lab):
    run(lab, rate(0.02))
    stop, seen = StopFlag(), []
    for pair in replicate.replicate(lab, 4, stop):
        seen.append(pair.seed)
        stop.soon = True
    assert len(seen) == 1
    seen += [pair.seed for pair in replicate.replicate(lab, 4, StopFlag())]

    assert len(set(seen)) == 4
    assert list(replicate.replicate(lab, 4, StopFlag())) == []


def test_without_a_keep_there_is_nothing_to_replicate(lab):
    run(lab)
    done = command(lab, "replicate")

    assert done.returncode == 3
    assert "nothing is kept in this series yet" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_champion_that_fails_on_every_fresh_seed_ends_it(tmp_path):
    lab = line_lab(tmp_path / "moody", 'budget_tokens = 2000\npolicy = "greedy"')
    (row,) = run(lab)
    (seed,) = {m.seed for m in Ledger(lab.ledger_path).load_run_records(row.number)}
    moody = lab.read_file("train.py").replace(
        "LEARNING_RATE = 0.01", "LEARNING_RATE = 0.02"
    )
    moody = moody.replace(
        "model = build_model()\n",
        f"if run.seed != {seed}:\n    raise SystemExit('moody')\n"
        "model = build_model()\n",
    )
    rows = run(lab, {"title": "moody", "source": moody})
    assert rows[0].decision == "keep"

    pairs = list(replicate.replicate(lab, 8, StopFlag()))
    assert len(pairs) == replicate.MAX_FAILED_PAIRS
    assert all(pair.scores is None and "moody" in pair.why for pair in pairs)
    assert command(lab, "replicate").returncode == 3


# -- ablate ----------------------------------------------------------------------------


def test_every_change_is_taken_out_alone_and_measured_on_seeds(greedy):
    found = {a.step: a for a in ablate.ablate(greedy, 3, StopFlag())}

    assert set(found) == {1, 2}
    ledger = Ledger(greedy.ledger_path)
    assert "LEARNING_RATE = 0.01" in ledger.load_source(
        ledger.load_row(found[1].experiment).blob
    )
    assert "MOMENTUM = 0.7" in ledger.load_source(
        ledger.load_row(found[1].experiment).blob
    )
    assert "MOMENTUM = 0.5" in ledger.load_source(
        ledger.load_row(found[2].experiment).blob
    )
    assert found[1].worth > 0
    assert found[1].low < found[1].worth < found[1].high
    assert found[1].runs == 3
    assert ledger.load_row(2).runs == 3  # the champion ran on the same seeds
    for one in found.values():
        row = ledger.load_row(one.experiment)
        assert row.author == "ablate"
        assert row.decision == "discard"
    assert command(greedy, "verify-ledger").returncode == 0


def test_what_has_its_runs_already_is_not_run_again(tmp_path):
    lab = line_lab(tmp_path / "lab", 'budget_tokens = 2000\npolicy = "greedy"')
    rows = run(lab, rate(0.02))
    assert rows[-1].decision == "keep"

    (found,) = ablate.ablate(lab, 1, StopFlag())

    assert found.experiment == 0
    assert found.worth == pytest.approx(rows[0].value - rows[1].value)
    assert found.decision is None
    assert len(Ledger(lab.ledger_path).load_rows()) == 2


def test_a_change_that_was_only_lucky_is_removed_and_the_champion_moves_on(tmp_path):
    lab = line_lab(tmp_path / "lab", 'budget_tokens = 2000\npolicy = "greedy"')
    run(lab)
    (seed,) = {m.seed for m in Ledger(lab.ledger_path).load_run_records(0)}
    source = lab.read_file("train.py")
    lucky = source.replace(
        "    rate = LEARNING_RATE *",
        f"    rate = (0.02 if run.seed == {seed} else 0.0005) *",
    )
    assert lucky != source
    rows = run(lab, {"title": "lucky", "source": lucky})
    assert rows[0].decision == "keep"

    (found,) = ablate.ablate(lab, 3, StopFlag())

    ledger = Ledger(lab.ledger_path)
    assert found.decision == "keep"
    assert found.worth < 0
    assert ledger.champion.number == found.experiment
    assert lab.read_file("train.py") == source


def test_a_step_that_others_were_built_on_cannot_be_taken_out_alone(tmp_path):
    lab = line_lab(tmp_path / "lab", 'budget_tokens = 2000\npolicy = "greedy"')
    old = "rate = LEARNING_RATE * min(1.0, (1 - run.progress) / max(WARMDOWN, 1e-9))"
    source = lab.read_file("train.py")
    assert old in source
    one = source.replace(old, "rate = 1.5 * LEARNING_RATE")
    two = source.replace(old, "rate = 3 * LEARNING_RATE")
    rows = run(lab, {"title": "one", "source": one}, {"title": "two", "source": two})
    assert [row.decision for row in rows] == ["keep", "keep", "keep"]

    found = {a.step: a for a in ablate.ablate(lab, 1, StopFlag())}
    assert Ledger(lab.ledger_path).champion.number == 2
    assert found[1].worth is None
    assert "cannot be removed alone" in found[1].why


def test_ablate_says_each_change_and_its_worth(greedy):
    done = command(greedy, "ablate", "--runs", "2")
    lines = done.stdout.splitlines()

    assert done.returncode == 0
    assert [line.split()[:2] for line in lines[:2]] == [["2", "worth"], ["1", "worth"]]
    assert lines[-1].startswith("Next: ")
    assert Repository(greedy.folder).run_git("status", "--porcelain") == ""


def test_a_champion_that_is_the_baseline_has_nothing_to_take_out(lab):
    run(lab)
    done = command(lab, "ablate")

    assert done.returncode == 0
    assert "there is nothing to remove" in done.stdout


def test_without_a_ledger_both_say_what_to_type_next(lab):
    with pytest.raises(LabError, match="Next: autoresearch run"):
        list(ablate.ablate(lab, 1, StopFlag()))
    with pytest.raises(LabError, match="Next: autoresearch run"):
        list(replicate.replicate(lab, 1, StopFlag()))
