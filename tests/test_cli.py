"""The command line: help, JSON, exit codes, one clear sentence for every mistake."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from autoresearch.cli.app import main
from autoresearch.commands.new import LABS, create_lab
from autoresearch.git import Repository
from autoresearch.lab import program
from autoresearch.reporting import status
from autoresearch.text import format_exact
from tests import nights
from tests.nights import command, line_lab, rate, run

ROW = {
    "experiment", "decision", "verdict", "why", "kind", "value", "delta", "against", "runs",
    "values", "title", "on_top_of", "reason", "proposed_by", "commit", "ran", "program", "series",
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


def test_the_help_shows_the_seven_commands_of_a_day_and_then_all_others():
    _, daily, more = re.split("Commands:|More:", command_line("--help").stdout)
    names = [re.findall(r"^  ([\w-]+) ", part, re.M) for part in (daily, more)]

    assert names[0] == ["new", "check", "run", "try", "log", "report", "replicate"]
    assert sorted(names[0] + names[1]) == sorted(main.commands)
    assert len(names[1]) == 15


def test_every_line_of_the_help_fits_a_terminal():
    lines = command_line("--help").stdout.splitlines()

    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")]  # 1: usage


def test_a_command_of_the_second_list_works_like_one_of_the_first(lab):
    run(lab)

    for name in ("status", "show", "guide", "context"):
        assert command(lab, name).returncode == 0, name


def test_the_help_of_check_documents_config_toml():
    said = " ".join(command_line("check", "--help").stdout.split())

    assert "$XDG_CONFIG_HOME/autoresearch" in said
    assert 'pool = "local"' in said


def command_line(*words):
    return subprocess.run(
        (sys.executable, "-m", "autoresearch", *words), capture_output=True, text=True
    )


def test_json_is_a_contract(lab):
    done = command(lab, "run", "--json", "--experiments", "1", "--seed", "1")
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    status = json.loads(command(lab, "status", "--json").stdout)
    shown = json.loads(command(lab, "show", "baseline", "--json").stdout)
    logged = [json.loads(x) for x in command(lab, "log", "--json").stdout.splitlines()]

    assert all(set(verdict) == ROW for verdict in verdicts)
    assert logged == verdicts
    assert set(shown) == ROW | {"diff", "log"}
    assert set(status) == {
        "experiments", "kept", "baselines", "taken_back", "discarded", "unresolved", "ended_early",
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
    assert not list((lab.state_folder / "runs").glob("*"))


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
    page = lab.file_path("report.html").read_text()

    assert done.returncode == 0
    assert "mse  0.0" in done.stdout
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=.?http", page)
    assert "git diff autoresearch/0 HEAD" in page


# -- a new lab -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "line"])
def test_a_new_lab_shows_three_files(tmp_path, kind):
    assert command(tmp_path, "new", "lab", "--kind", kind).returncode == 0

    shown = subprocess.run(("ls", tmp_path / "lab"), capture_output=True, text=True)

    assert shown.stdout.split() == ["prepare.py", "program.md", "train.py"]


PROFILES = tomllib.loads((LABS / "gpt" / "profiles.toml").read_text())


@pytest.mark.parametrize("cage", ["full", "landlock"])
@pytest.mark.parametrize(
    ("kind", "profile"), [("line", None), *(("gpt", name) for name in PROFILES)]
)
def test_program_md_of_a_new_lab_sets_at_most_two_things(tmp_path, kind, profile, cage):
    create_lab(tmp_path / "lab", kind, None, None, profile, cage)
    text = (tmp_path / "lab" / "program.md").read_text()
    settings = tomllib.loads(program.SETTINGS_FENCE.match(text)[1])

    budget = "budget_seconds" if profile not in (None, "demo") else "budget_tokens"
    assert set(settings) == {budget} | ({"cage"} if cage != "full" else set())
    assert program.parse_program(text).proposers == ("search",)


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
    lab.file_path("prepare.py").unlink()

    mistake(command(lab, "run"), "has no prepare.py", "git checkout")


def test_a_prepare_py_that_differs_from_its_commit(lab):
    with lab.file_path("prepare.py").open("a") as file:
        file.write("METRIC = 'mine'\n")

    mistake(
        command(lab, "run"), "differs from its commit", "git checkout -- prepare.py"
    )


def test_a_prepare_py_that_is_broken_or_incomplete(lab):
    for text, says in (
        ("1 / 0\n", "ZeroDivisionError"),
        ("METRIC = 'x'\n", "offers no"),
    ):
        lab.file_path("prepare.py").write_text(text)
        book = Repository(lab.folder)
        book.run_git(
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
    lab.file_path("program.md").write_text(f"```toml\n{fence}\n```\n")

    mistake(command(lab, "run", "--experiments", "1"), says)


def test_a_branch_that_is_a_detached_head(lab):
    Repository(lab.folder).run_git("checkout", "-q", "--detach")

    mistake(command(lab, "run"), "detached", "git switch -c")


def test_a_lab_that_is_not_under_git(lab):
    subprocess.run(["rm", "-rf", str(lab.file_path(".git"))], check=True)

    mistake(command(lab, "run"), "not a git repository", "git init")


def test_a_lab_in_use(lab):
    with lab.hold_lock():
        mistake(command(lab, "run"), "in use", "autoresearch stop")


def test_a_corrupt_ledger_is_rebuilt_from_git(lab):
    run(lab, rate(0.02), rate(0.0001))
    lab.ledger_path.write_bytes(b"this is not a database" * 1000)

    mistake(command(lab, "run"), "autoresearch rebuild")
    rebuilt = command(lab, "rebuild")
    again = command(lab, "run", "--experiments", "1", "--json")

    assert "3 experiments restored from git" in rebuilt.stdout
    assert json.loads(again.stdout.splitlines()[0])["experiment"] == 3
    assert list(lab.state_folder.glob("ledger.db.before-rebuild*"))


def test_too_soon_is_exit_code_3_and_a_name_that_is_none_is_2(lab):
    for words in (
        *(("status",), ("log",), ("show", "4"), ("report",), ("stop",), ("context",)),
        *(("verify-ledger",), ("replay",)),
    ):
        done = command(lab, *words)
        assert done.returncode == 3, words
        assert "Next: autoresearch" in done.stderr
    run(lab)

    assert command(lab, "show", "99").returncode == 3
    mistake(command(lab, "show", "foo"), "'foo' is not an experiment", "Next: ")


@pytest.mark.parametrize(
    "words",
    [
        *(("run", "--hours", hours) for hours in ("nan", "inf", "-1", "1e12")),
        ("run", "--experiments", "-1"),
        ("run", "--seed", "-5"),
        ("run", "--seed", str(2**63)),
        ("run", "--dollars", "-5"),
        ("check", "--hours", "nan"),
        ("replicate", "--pairs", "0"),
        ("replicate", "--pairs", "-3"),
        ("ablate", "--runs", "0"),
        ("demo", "here", "--experiments", "-1"),
        ("mcp", "--http", "99999999"),
        ("log", "--last", "-1"),
    ],
    ids=" ".join,
)
def test_a_number_that_makes_no_sense_is_refused_before_anything_happens(lab, words):
    done = command(lab, *words)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Invalid value" in done.stderr
    assert not lab.file_path("here").exists()


def test_a_place_where_no_lab_can_be_made_is_said_in_one_sentence(tmp_path):
    mistake(command(tmp_path, "new", "/proc/foo"), "cannot be created", "Next: ")


def test_a_folder_with_a_space_can_be_pasted(tmp_path):
    done = command(tmp_path, "new", "my lab", "--kind", "line")

    assert "Next: cd 'my lab' && autoresearch prepare" in done.stdout


def test_a_mistake_in_a_proposer_comes_with_something_to_type(lab, tmp_path):
    for words in (("--proposer", "script:nofile"), ("--proposer", "claud")):
        done = command(lab, "check", *words)
        mistake(done, "Next: ")
        assert "Errno" not in done.stderr
    mistake(command(tmp_path, "new", "l", "--text", "nosuch"), "Next: autoresearch new")


def test_a_champion_can_be_trained_longer_and_scored_in_lab_line(lab):
    run(lab)
    assert "train.py --" not in command(lab, "report").stdout  # nothing is kept
    run(lab, rate(0.02))
    then = command(lab, "report").stdout.splitlines()[-1]
    python = "python train.py --tokens 200000 --out champion/"
    assert then.endswith(python)

    longer = python.replace("python", sys.executable, 1).split()
    trained = subprocess.run(longer, cwd=lab.folder, capture_output=True, text=True)
    scored = subprocess.run(
        (sys.executable, "prepare.py", "score", "champion/"),
        cwd=lab.folder,
        capture_output=True,
        text=True,
    )

    assert "Next: python prepare.py score champion" in trained.stdout
    assert re.match(r"mse: \S+   \(", scored.stdout), scored.stderr


def test_small_scores_keep_their_digits():
    assert format_exact(0.00000234567) == "2.34567e-06"
    assert format_exact(-0.000012, "+") == "-1.2e-05"
    assert format_exact(0.0) == "0.000000"
    assert format_exact(1.25) == "1.250000"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount namespace")
def test_a_lab_that_cannot_be_written_is_read_and_nothing_else(lab):
    run(lab, rate(0.02))

    def there(*words):
        typed = " ".join((*nights.AUTORESEARCH, *words))
        bound = f"mount --bind -o ro . '{lab.folder}' && cd '{lab.folder}' && {typed}"
        done = subprocess.run(
            ("unshare", "--mount", "sh", "-c", bound),
            cwd=lab.folder,
            capture_output=True,
            text=True,
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip("needs a mount namespace")
        return done

    for words in ("status", "log", "show 1"):
        assert "rate 0.02" in there(words).stdout
    assert "read-only" in there("report").stdout
    for words in ("run", "check", "replicate", "rebuild", "pause", "resume"):
        mistake(there(words), "read-only", "Next: ")
    mistake(there("try", "train.py", "again"), "read-only", "Next: ")


def test_hours_that_hold_no_idea_are_said_to_at_the_start(lab):
    text = lab.read_file("program.md").replace(
        "budget_tokens = 2000", "budget_seconds = 9"
    )
    lab.file_path("program.md").write_text(text)

    night = nights.start(lab, "run", "--hours", "0.002")
    said = night.stdout.readline() + night.stdout.readline()
    nights.kill(night)

    assert "0.002 hours leave no time for ideas: the baseline alone is 3 runs" in said
    assert "at least 0.45 min" in said


def test_check_says_what_a_night_takes_at_least(lab):
    found = json.loads(command(lab, "check", "--json").stdout)

    assert found["least_seconds"] == pytest.approx(3 * found["run_seconds"])


def test_a_run_that_has_hardly_begun_does_not_say_when_it_ends():
    run = {
        "experiment": 1, "title": "x", "phase": "training", "share": 0.003,
        "loss": None, "tokens": 0, "seconds": 4.5,
    }  # fmt: skip

    assert "left" not in status.format_run(run)
    assert "4.0 s left" in status.format_run({**run, "share": 0.5, "seconds": 4.0})


def test_what_stop_now_throws_away_is_counted(lab):
    source = lab.read_file("train.py").replace(
        "run.submit", "import time\ntime.sleep(8)\nrun.submit"
    )
    lab.file_path("train.py").write_text(source)
    Repository(lab.folder).run_git(
        *("-c", "user.name=t", "-c", "user.email=t", "commit", "-qam", "slow")
    )
    night = nights.start(lab, "run", "--experiments", "1")
    nights.wait_for(
        lambda: '"finished": 1' in read(lab.live_status_path), 60, "the second run"
    )

    soon = command(lab, "stop")
    now = command(lab, "stop", "--now")
    night.communicate(timeout=60)

    assert "after the current experiment and all its runs" in soon.stdout
    assert re.search("current run is lost, and so are [12] finished runs", now.stdout)
    assert "starts the experiment again" in now.stdout


def read(path):
    return path.read_text() if path.exists() else ""


def test_a_pause_that_somebody_forgot_is_said_by_whatever_is_typed(lab):
    run(lab)
    command(lab, "pause")

    assert "paused" in command(lab, "status").stdout
    assert json.loads(command(lab, "status", "--json").stdout)["paused"] is True
    tried = command(lab, "try", "train.py", "x", "--wait", "0.1")
    assert "autoresearch run" in tried.stderr  # nothing runs either
    night = nights.start(lab, "run", "--experiments", "1")
    said = night.stdout.readline() + night.stdout.readline()
    tried = command(lab, "try", "train.py", "x")
    nights.kill(night)

    assert "this lab is paused; to begin: autoresearch resume" in said
    assert "paused" in tried.stdout


def test_every_view_counts_alike(lab):
    run(lab, rate(0.02), rate(0.0001))

    said = "1 kept, 1 baseline, 1 discarded"
    report = json.loads(command(lab, "report", "--json").stdout)["counts"]
    status = json.loads(command(lab, "status", "--json").stdout)

    assert said in command(lab, "status").stdout
    assert said in command(lab, "report").stdout
    assert report == {key: status[key] for key in report}


def test_a_broken_fence_is_said_by_every_view_and_stops_no_agent(lab):
    run(lab, rate(0.02))
    text = lab.read_file("program.md")
    lab.file_path("program.md").write_text(
        text.replace("budget_tokens", "budget_tokes")
    )

    for words in (("status",), ("log",), ("report",), ("show", "0")):
        said = command(lab, *words).stdout
        assert "note: program.md: unknown setting 'budget_tokes'" in said
        assert "Next: correct it; the last good program.md stays in force" in said
    context = command(lab, "context")
    assert context.returncode == 0
    assert "def " in context.stdout
    assert command(lab, "guide").returncode == 0


def test_settings_in_a_fence_that_nobody_reads_are_pointed_at(lab):
    text = lab.read_file("program.md")
    assert program.find_ignored_settings(text) == ""
    for odd, line in (
        (text.replace("```toml", "```tmol"), 1),
        (f"# My lab\n\n{text}", 3),
    ):
        assert f"program.md line {line}: budget_" in program.find_ignored_settings(odd)
    lab.file_path("program.md").write_text(f"# Fast\n{text}")

    night = nights.start(lab, "run")  # of 300 s a run: every default holds
    said = night.stdout.readline() + night.stdout.readline()
    nights.kill(night)

    assert "note: program.md line 2: budget_tokens is set in a fence" in said


def test_the_report_of_a_lab_whose_prepare_py_was_edited_can_be_read(lab):
    run(lab, rate(0.02))
    with lab.file_path("prepare.py").open("a") as file:
        file.write("# mine\n")

    report, verified = command(lab, "report"), command(lab, "verify-ledger")

    assert report.returncode == 0
    assert verified.returncode == 5
    assert "differs from its commit" in verified.stdout.partition("PROBLEM")[2]


def test_try_before_there_is_a_champion_or_with_no_file(lab):
    run(lab)

    mistake(command(lab, "try", "nowhere.py", "x"), "nowhere.py cannot be read")
    mistake(command(lab, "try", "train.py", " "), "the title is empty")
