"""The command line: help, JSON, exit codes, one clear sentence for every mistake."""

import json
import re
import subprocess
import sys

import pytest

from autoresearch.cli import main
from autoresearch.notebook import Notebook
from tests import nights
from tests.nights import command, line_lab, rate, run

ROW = {
    "experiment", "decision", "verdict", "why", "kind", "value", "delta", "against", "runs",
    "values", "title", "reason", "proposed_by", "commit", "ran", "program", "series",
    "seconds", "memory_gb", "facts", "health", "evidence", "decided_at",
}  # fmt: skip


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_one_line_of_help_and_a_copyable_example(name):
    done = command_line(name, "--help")

    assert done.returncode == 0
    assert f"autoresearch {name}" in done.stdout.partition("example:")[2]
    assert main.commands[name].help.splitlines()[0].endswith((".", "?"))


def test_commands_are_listed_in_the_order_of_a_day():
    names = re.findall(
        r"^  (\w+) ", command_line("--help").stdout.partition("Commands:")[2], re.M
    )

    assert names[:6] == ["new", "prepare", "check", "run", "status", "stop"]


def command_line(*words):
    return subprocess.run(
        (sys.executable, "-m", "autoresearch", *words), capture_output=True, text=True
    )


def test_json_is_a_contract(lab):
    done = command(lab, "run", "--json", "--experiments", "1")
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    status = json.loads(command(lab, "status", "--json").stdout)
    shown = json.loads(command(lab, "show", "baseline", "--json").stdout)
    logged = [json.loads(x) for x in command(lab, "log", "--json").stdout.splitlines()]

    assert all(set(verdict) == ROW for verdict in verdicts)
    assert logged == verdicts
    assert set(shown) == ROW | {"diff", "log"}
    assert set(status) == {
        "experiments", "kept", "taken_back", "discarded", "unresolved", "ended_early",
        "failed", "runs", "claimed", "baseline", "champion", "waiting", "running",
        "series", "last", "paused",
    }  # fmt: skip
    assert status["experiments"] == 2
    assert status["baseline"]["experiment"] == 0
    assert status["running"] is None


def test_check_tries_everything_and_forecasts_the_night(lab):
    found = json.loads(command(lab, "check", "--json", "--hours", "1").stdout)
    said = command(lab, "check").stdout

    assert found["cage"] == nights.walls().level
    assert found["experiments"] > 100
    assert found["proposers"] == ["search"]
    assert "Next: autoresearch run --hours 8" in said
    assert "6 constants" in said
    assert not list((lab.state / "runs").glob("*"))


def test_show_has_diff_scores_and_verdict(lab):
    run(lab, rate(0.02, "bolder"))

    said = command(lab, "show", "champion").stdout

    assert "-LEARNING_RATE = 0.01" in said
    assert "+LEARNING_RATE = 0.02" in said
    assert "why       gain" in said
    assert "Next: git show autoresearch/1" in said


def test_log_can_be_narrowed(lab):
    run(
        lab, rate(0.02), rate(0.0001), rate(0.019), {"title": "boom", "source": "1/0\n"}
    )

    kept = command(lab, "log", "--kept").stdout
    failed = command(lab, "log", "--failed").stdout
    near = command(lab, "log", "--near").stdout.splitlines()

    assert "rate 0.02" in kept
    assert "boom" not in kept
    assert "boom" in failed
    assert "rate 0.019" in near[0]


def test_the_report_is_written_beside_the_lab(lab):
    run(lab, rate(0.02), {"title": "<script>alert(1)</script>", "source": "1/0\n"})

    done = command(lab, "report")
    page = lab.path("report.html").read_text()

    assert done.returncode == 0
    assert "mse  0.0" in done.stdout
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=.?http", page)
    assert "git diff autoresearch/0 HEAD" in page


# -- mistakes --------------------------------------------------------------------------


def mistake(done, *words, code=2):
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    said = done.stderr.strip()
    assert said.count("\n") == 0, said
    for word in words:
        assert word in said


def test_a_folder_that_is_no_lab(tmp_path):
    mistake(command(tmp_path, "run"), "is not a lab", "autoresearch new")


def test_new_does_not_touch_a_folder_that_has_something(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")

    mistake(command(tmp_path, "new", "."), "not empty")

    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--text", "no-such-thing"), "fineweb-edu"),
        (("--vocab", "3"), "257"),
        (("--vocab", "70000"), "65536"),
    ],
)
def test_new_with_bad_options_makes_nothing(tmp_path, words, says):
    mistake(command(tmp_path, "new", "lab", *words), says)

    assert not (tmp_path / "lab").exists()


def test_a_missing_prepare_py(lab):
    lab.path("prepare.py").unlink()

    mistake(command(lab, "run"), "has no prepare.py", "git checkout")


def test_a_prepare_py_that_differs_from_its_commit(lab):
    with lab.path("prepare.py").open("a") as file:
        file.write("METRIC = 'mine'\n")

    mistake(
        command(lab, "run"), "differs from its commit", "git checkout -- prepare.py"
    )


def test_a_prepare_py_that_is_broken_or_incomplete(lab):
    for text, says in (
        ("1 / 0\n", "ZeroDivisionError"),
        ("METRIC = 'x'\n", "offers no"),
    ):
        lab.path("prepare.py").write_text(text)
        book = Notebook(lab.folder)
        book.git(
            "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "broken"
        )

        mistake(command(lab, "run"), says)


@pytest.mark.parametrize(
    ("fence", "says"),
    [
        ("budget_secondes = 3", "'budget_seconds'"),
        ('budget_seconds = "five"', "takes a number"),
        ("budget_seconds = 3\nbudget_tokens = 4", "one budget"),
        ("budget_seconds = = 3", "line 2"),
        ('proposers = ["telepathy"]', "telepathy"),
        ('proposers = ["claud"]', "the proposers are"),
        ('policy = "vibes"', "greedy"),
    ],
)
def test_a_broken_fence_at_the_start(lab, fence, says):
    lab.path("program.md").write_text(f"```toml\n{fence}\n```\n")

    mistake(command(lab, "run", "--experiments", "1"), says)


def test_a_branch_that_is_a_detached_head(lab):
    Notebook(lab.folder).git("checkout", "-q", "--detach")

    mistake(command(lab, "run"), "detached", "git switch -c")


def test_a_lab_that_is_not_under_git(lab):
    subprocess.run(["rm", "-rf", str(lab.path(".git"))], check=True)

    mistake(command(lab, "run"), "not a git repository", "git init")


def test_a_lab_in_use(lab):
    with lab.held():
        mistake(command(lab, "run"), "in use", "autoresearch stop")


def test_a_corrupt_ledger_is_rebuilt_from_git(lab):
    run(lab, rate(0.02), rate(0.0001))
    lab.ledger.write_bytes(b"this is not a database" * 1000)

    mistake(command(lab, "run"), "autoresearch rebuild")
    rebuilt = command(lab, "rebuild")
    again = command(lab, "run", "--experiments", "1", "--json")

    assert "3 experiments came back" in rebuilt.stdout
    assert json.loads(again.stdout.splitlines()[0])["experiment"] == 3
    assert list(lab.state.glob("ledger.db.before-rebuild*"))


def test_too_soon_is_exit_code_3(lab):
    for words in (("status",), ("log",), ("show", "4"), ("report",), ("stop",)):
        done = command(lab, *words)
        assert done.returncode in (2, 3), words
        assert "Next: autoresearch" in done.stderr


def test_try_before_there_is_a_champion_or_with_no_file(lab):
    run(lab)

    mistake(command(lab, "try", "nowhere.py", "x"), "nowhere.py cannot be read")
    mistake(command(lab, "try", "train.py", " "), "the title is empty")
