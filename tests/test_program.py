"""program.md: what people write into it, and what they are told when it is wrong."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.errors import LabError
from autoresearch.lab.program import SETTING_TYPES, SETTINGS, Program, parse_program

# The article's own, verbatim.
ARTICLE = """\
# Research Program
## Goal
Minimize val_bpb on FineWeb-EDU using a single H100 with 5-min experiments.
## Strategy
- Ablate ONE variable per commit. No bundled changes.
- Draw from 2025–2026 transformer papers (Muon, QK-norm, RoPE variants).
- Complexity penalty: if a change adds >20 lines for <0.001 bpb gain, reject it.
- Removing something and matching performance is a great result.
## Hard Constraints
- Never touch prepare.py
- Every run must complete in 300s ± 15s or it's invalid
- Only commit if val_bpb strictly improves over current best
"""


def fenced(toml: str, prose: str = "# Goal\n") -> str:
    return f"```toml\n{toml}\n```\n{prose}"


def complaint(text: str) -> str:
    with pytest.raises(LabError) as refused:
        parse_program(text)
    assert len(str(refused.value)) < 600
    return str(refused.value)


# -- what is valid ---------------------------------------------------------------------


def test_the_articles_own_program_is_valid_with_every_default():
    assert parse_program(ARTICLE) == Program(prose=ARTICLE)


def test_its_hard_constraints_are_the_defaults():
    program = parse_program(ARTICLE)

    assert program.budget_seconds == 300
    assert program.tolerance_seconds == 15
    assert program.policy == "noise-aware"
    assert program.gain_per_20_added_lines == 0.001


@pytest.mark.parametrize("text", ["", "\n\n", "just a sentence", "```toml\n```\n"])
def test_an_empty_or_plain_program_means_the_defaults(text):
    assert replace(parse_program(text), prose="") == Program()


def test_every_setting_can_be_set_and_the_prose_is_what_follows_the_fence():
    program = parse_program(
        fenced(
            """
            budget_tokens = 100_000_000
            budget_tolerance_seconds = 5
            readonly = ["notes.md", "data/table.csv"]
            cage = "none"
            max_memory_gb = 20.5
            proposers = ["search", "script:ideas.json"]
            policy = "greedy"
            early_kill = false
            max_constants = 2
            max_changed_lines = 0
            gain_per_20_added_lines = 0
            experiments = 88
            hours = 8
            dollars = 0""",
            "# Goal\nBe bold.\n",
        )
    )

    assert program == Program(
        budget_seconds=None,
        budget_tokens=100_000_000,
        budget_tolerance_seconds=5,
        readonly=("notes.md", "data/table.csv"),
        cage="none",
        max_memory_gb=20.5,
        proposers=("search", "script:ideas.json"),
        max_constants=2,
        max_changed_lines=0,
        gain_per_20_added_lines=0,
        experiments=88,
        hours=8,
        prose="\n# Goal\nBe bold.\n",
        policy="greedy",
        early_kill=False,
    )


def test_every_setting_has_a_type_and_every_type_a_setting():
    assert set(SETTING_TYPES) == set(SETTINGS)


def test_a_fence_that_does_not_come_first_is_prose():
    text = "# Goal\n\n" + fenced("budget_seconds = 60")

    assert parse_program(text) == Program(prose=text)


def test_a_second_fence_is_prose():
    program = parse_program(fenced("budget_seconds = 60", fenced("budget_seconds = 5")))

    assert program.budget_seconds == 60
    assert "budget_seconds = 5" in program.prose


def test_windows_line_endings_and_a_byte_order_mark_change_nothing():
    text = fenced("budget_seconds = 60\nhours = 8", "# Goal\n")

    program = parse_program("\ufeff" + text.replace("\n", "\r\n"))

    assert (program.budget_seconds, program.hours) == (60, 8)


@pytest.mark.parametrize(
    ("seconds", "tolerance"), [(300, 15), (3600, 15), (100, 5), (60, 3), (10, 2)]
)
def test_a_short_budget_has_a_narrower_tolerance(seconds, tolerance):
    assert (
        parse_program(fenced(f"budget_seconds = {seconds}")).tolerance_seconds
        == tolerance
    )


# -- what is wrong, and where ----------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("budget_second", "budget_seconds"),
        ("max_constant", "max_constants"),
        ("proposer", "proposers"),
        ("experiment", "experiments"),
        ("max_memory_GB", "max_memory_gb"),
        ("gain_per_20_lines", "gain_per_20_added_lines"),
        ("prose", "proposers"),  # a field of Program, but no setting
    ],
)
def test_an_unknown_setting_is_told_the_nearest_one(typo, meant):
    said = complaint(fenced(f"{typo} = 1"))

    assert f"unknown setting '{typo}'" in said
    assert f"nearest is '{meant}'" in said


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s != "early_kill"])
@pytest.mark.parametrize("value", ["true", "{a = 1}", "1979-05-27", "[[1]]", "[1, 2]"])
def test_a_value_of_a_wrong_type_is_named_with_its_setting(setting, value):
    assert f"program.md: {setting} is " in complaint(fenced(f"{setting} = {value}"))


@pytest.mark.parametrize("value", ["1", "0", "'true'", "[true]"])
def test_a_switch_is_true_or_false_and_nothing_else(value):
    assert "takes true or false" in complaint(fenced(f"early_kill = {value}"))


@pytest.mark.parametrize(
    ("line", "takes"),
    [
        ('budget_seconds = "300"', "a number"),
        ("budget_tokens = 1e8", "a whole number"),
        ("experiments = 1.5", "a whole number"),
        ('proposers = "search"', "a list of texts"),
        ('proposers = ["search", 1]', "a list of texts"),
        ("cage = 3", "text"),
        ('cage = "fulll"', "full, landlock"),
        ('policy = "noisy"', "greedy"),
    ],
)
def test_what_a_setting_takes_is_said(line, takes):
    assert takes in complaint(fenced(line))


@pytest.mark.parametrize("value", ["0", "-1", "-0.001", "nan", "inf", "-inf", "1e300"])
@pytest.mark.parametrize("setting", ["budget_seconds", "hours", "max_memory_gb"])
def test_a_number_that_makes_no_sense_is_refused(setting, value):
    said = complaint(fenced(f"{setting} = {value}"))

    assert setting in said
    assert "must be positive" in said


def test_two_budgets_contradict_each_other():
    said = complaint(fenced("budget_seconds = 300\nbudget_tokens = 1000"))

    assert "budget_seconds and budget_tokens" in said
    assert "Next: delete one" in said


def test_no_proposer_at_all_is_a_contradiction():
    assert "proposers is empty" in complaint(fenced("proposers = []"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "//etc/passwd",
        "../other/notes.md",
        "a/../../b",
        "",
        ".",
        ".git/config",
        ".autoresearch/ledger.db",
        "./.git/config",
        r"a\u0000b",
    ],
)
def test_readonly_cannot_reach_outside_the_lab(path):
    assert "not inside the lab" in complaint(fenced(f'readonly = ["{path}"]'))


@pytest.mark.parametrize("path", ["train.py", "./prepare.py"])
def test_readonly_cannot_replace_the_train_py_of_a_candidate(path):
    assert "anyway" in complaint(fenced(f'readonly = ["{path}"]'))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (fenced("budget_seconds 300"), 2),
        (fenced("hours = 8\n\nbudget_seconds = 300s"), 4),
        ("\n\n" + fenced("hours = 8\nbudget_seconds = "), 5),
        (fenced("hours = 8\nhours = 9"), 3),
        (fenced("a = [1,\n2\n"), 4),  # never closed: the last line of the fence
        (fenced('cage = """none\n'), 3),
        (fenced("hours = 8\nbudget_seconds 300").replace("\n", "\r\n"), 3),
    ],
)
def test_broken_toml_names_the_line_of_program_md(text, line):
    assert f"program.md line {line}: " in complaint(text)


def test_a_fence_that_is_never_closed_is_said_to_be():
    assert "never closed" in complaint("```toml\nhours = 8\n# Goal\n")


# -- hostile ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "toml",
    [
        "hours = " + "[" * 10_000,
        "hours = " + "{a=" * 5_000,
        "hours." + "a." * 5_000 + "a = 1",
        "hours." + "a." * 500_000 + "a = 1",
        "hours = " + "9" * 5_000,
        "hours = 0x" + "f" * 5_000,
        "budget_tokens = 0x" + "f" * 5_000,
        f'cage = "{"x" * 15_000}"',
        f'cage = "{"x" * 500_000}"',
        f"{'a' * 15_000} = 1",
        f"{'ab_' * 5_000} = 1",
        f"proposers = [{'1,' * 8_000}]",
        f'readonly = ["{"../" * 5_000}"]',
        f'readonly = ["{"/" * 15_000}"]',
    ],
    ids=lambda toml: toml[:16],
)
def test_a_fence_of_hostile_size_is_one_short_complaint(toml):
    complaint(fenced(toml))


def test_a_program_beyond_a_megabyte_is_refused():
    assert "larger than 1 MB" in complaint("x" * (1 << 20) + "y")


def outcome(text: str) -> Program | str:
    try:
        return parse_program(text)
    except LabError as error:
        return str(error)


@pytest.mark.parametrize("text", [" " * (1 << 20), "```toml\n" * 130_000, "`" * 99_999])
def test_a_megabyte_of_almost_a_fence_is_read_at_once(text):
    found = outcome(text)

    assert found == Program(prose=text) or "never closed" in found


@given(st.text(max_size=200) | st.binary(max_size=100).map(os.fsdecode))
def test_any_text_is_a_program_or_one_clear_complaint(noise):
    for text in (fenced(noise), noise):
        found = outcome(text)

        assert isinstance(found, Program) or found.startswith("program.md")
