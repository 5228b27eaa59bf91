"""What `check` says of a run, from what a short one showed."""

from dataclasses import replace
from pathlib import Path

from autoresearch.commands import check
from autoresearch.experiment import Candidate, Proposal, Run, Score
from autoresearch.lab import program
from autoresearch.proposers.registry import ProposerState


def checked(tokens_per_second, parameters, fence="budget_seconds = 300", **facts):
    known = {"tokens": int(12 * tokens_per_second), "parameters": parameters, **facts}
    candidate = Candidate(Proposal(0, "t", "", "", "test"), "blob")
    run = Run(
        candidate, 0, 12.0, 3.0, 1.0, Path("x"), tuple(known.items()), Path("log")
    )
    asked = program.parse_program(f"```toml\n{fence}\n```\n")
    score = Score(run, 1.0, 0.0, 2.0, 0.0)
    return check.CheckResult(
        {}, asked, {"level": "full"}, score, {"search": ProposerState("ok")}, 30, 8.0, 305.0, 1, 90_000_000
    )  # fmt: skip


def test_a_run_says_how_often_it_reads_its_text():
    found = checked(300_000, 50_000_000, mfu_percent=41.2)

    assert found.epochs == 1.0
    assert "300 s = 90M tokens = 1 epochs" in "\n".join(found.to_lines())
    assert "MFU 41.2 %" in "\n".join(found.to_lines())
    assert found.to_json()["too_short"] == ""


def test_a_card_on_which_300_seconds_are_too_short_is_offered_a_token_budget():
    found = checked(10_000, 20_000_000)

    assert "0.15 tokens per parameter" in found.short_budget_warning
    assert "budget_tokens = 40000000" in found.short_budget_warning
    assert found.short_budget_warning in "\n".join(found.to_lines())


def test_a_token_budget_is_judged_the_same_way():
    few = checked(10_000, 20_000_000, "budget_tokens = 1000000")
    enough = checked(10_000, 20_000_000, "budget_tokens = 40000000")

    assert few.short_budget_warning
    assert not enough.short_budget_warning


def test_a_train_py_that_sets_variables_is_told_what_that_costs():
    found = replace(checked(10_000, "many"), is_cold_start=True)

    assert "25 s more a run" in "\n".join(found.to_lines())
    assert found.to_json()["cold"] is True
    assert "environ" not in "\n".join(checked(10_000, "many").to_lines())


def test_a_lab_that_says_nothing_of_its_size_gets_no_advice():
    assert checked(10_000, "many").short_budget_warning == ""
    assert checked(10_000, "many").mfu_percent is None
