"""Coding agents: only train.py counts, and nothing outlives its limit."""

import os
import sys
import textwrap
import time

import pytest

from autoresearch.errors import LabError
from autoresearch.lab.program import Program
from autoresearch.proposers.agents import billing, process, registry
from autoresearch.proposers.agents.acp import AgentUsage
from autoresearch.proposers.registry import check_proposers as named_states
from autoresearch.proposers.registry import load_proposers
from autoresearch.proposers.toolkit import open_toolkit
from autoresearch.records.ledger import Ledger
from autoresearch.sandbox import command
from tests import nights
from tests.test_context import night as short_night

IDEA = (
    "open('IDEA.md','w').write('TITLE: deeper\\nREASON: more layers\\nEXPECTED: -0.01')"
)
DEEPER = "s = open('train.py').read(); open('train.py','w').write(s.replace('DEPTH = 4', 'DEPTH = 8'))"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab with a baseline; agents' homes in a folder of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = nights.line_lab(tmp_path / "lab")
    short_night(found.ledger_path).close()
    return found


def asked(lab, tmp_path, *lines):
    """An agent that is this Python script, asked once; (agent, proposal, asking)."""
    program = tmp_path / "agent.py"
    program.write_text(
        "import os, sys, time\nprompt = sys.stdin.read()\n" + "\n".join(lines)
    )
    one = process.Agent(
        f'cmd:"{sys.executable} {program}"', open_toolkit(lab.folder, Program())
    )
    ledger = Ledger(lab.ledger_path)
    proposal = one.propose(ledger)
    return one, proposal, ledger.load_proposer_calls()[-1]


def test_the_change_of_train_py_is_the_proposal(lab, tmp_path):
    one, proposal, asking = asked(lab, tmp_path, DEEPER, IDEA)

    assert (proposal.title, proposal.author) == ("deeper", one.name)
    assert proposal.reason == "more layers (expects -0.01)"
    assert "DEPTH = 8" in proposal.source
    assert proposal.refused == ""
    assert asking.outcome == "proposed"
    assert asking.dollars is None


def test_the_prompt_comes_on_stdin_and_never_as_an_argument(lab, tmp_path):
    _, proposal, asking = asked(
        lab, tmp_path, "assert len(sys.argv) == 1", "print(prompt)", DEEPER, IDEA
    )

    assert proposal.title == "deeper"
    said = (lab.state_folder / "asked" / asking.transcript).read_text()
    assert "Make ONE change to train.py" in said
    assert "DEPTH = 4" in said


def test_whatever_else_it_touched_is_reported_and_dropped(lab, tmp_path):
    before = lab.read_file("prepare.py")

    _, proposal, asking = asked(
        lab, tmp_path, DEEPER, IDEA,
        "open('prepare.py','a').write('METRIC = 0')", "open('extra.py','w').write('x')",
    )  # fmt: skip

    assert "DEPTH = 8" in proposal.source
    assert asking.outcome == "proposed; also touched, and dropped: extra.py, prepare.py"
    assert lab.read_file("prepare.py") == before


@pytest.mark.parametrize(
    "trick",
    [
        "os.remove('train.py'); os.symlink('/etc/passwd', 'train.py')",
        "os.remove('train.py'); os.mkfifo('train.py')",
        "os.remove('train.py')",
        "pass",
    ],
)
def test_a_train_py_that_is_no_file_of_its_own_is_no_proposal(lab, tmp_path, trick):
    one, proposal, asking = asked(lab, tmp_path, trick, IDEA)

    assert proposal is None
    assert asking.outcome.startswith("no change (exit code 0)")
    assert one.resting_until > 0


def test_a_refusal_goes_back_once_with_its_reason(lab, tmp_path):
    _, proposal, _ = asked(
        lab, tmp_path,
        "again = 'Your last answer was refused' in prompt and 'not Python' in prompt",
        "s = open('train.py').read()",
        "open('train.py','w').write(s.replace('DEPTH = 4', 'DEPTH = 7' if again else 'DEPTH = ('))",
        IDEA,
    )  # fmt: skip

    assert "DEPTH = 7" in proposal.source
    assert proposal.refused == ""


def test_at_its_limit_the_whole_tree_is_dead_and_a_change_left_behind_counts(
    lab, tmp_path, monkeypatch
):
    monkeypatch.setattr(process, "AGENT_SECONDS", 1.0)

    _, proposal, _ = asked(
        lab, tmp_path, DEEPER,
        "import subprocess",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77.125)'], start_new_session=True)",
        "time.sleep(60)",
    )  # fmt: skip

    assert "cut off at its time limit" in proposal.reason
    assert not sleepers("77.125")


def test_a_night_that_ends_does_not_wait_for_it(lab, tmp_path):
    import threading

    desk = open_toolkit(lab.folder, Program())
    one = process.Agent("cmd:sleep 77.25", desk)
    threading.Timer(0.5, one.close).start()
    begun = time.monotonic()

    assert one.propose(Ledger(lab.ledger_path)) is None

    assert time.monotonic() - begun < 20
    assert not sleepers("77.25")


def test_it_sees_no_secret_that_it_does_not_need(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")

    _, _, asking = asked(
        lab, tmp_path, "print(dict(os.environ))", "print('HOME', os.listdir(os.environ['HOME']))"
    )  # fmt: skip

    said = (lab.state_folder / "asked" / asking.transcript).read_text()
    assert "hunter2" not in said
    assert "HOME []" in said


@pytest.mark.skipif(not command.find_bubblewrap(), reason="no bubblewrap here")
def test_behind_walls_it_can_write_only_its_own_folders(lab, tmp_path):
    _, proposal, asking = asked(
        lab, tmp_path,
        f"for path in ({str(lab.folder)!r} + '/prepare.py', {str(tmp_path)!r} + '/x', '/etc/x'):",
        "    try: open(path, 'a').write('x'); print('WROTE', path)",
        "    except OSError as error: print('could not', path)",
        f"print('STATE', os.listdir({str(lab.state_folder)!r}) if os.path.exists({str(lab.state_folder)!r}) else [])",
        DEEPER, IDEA,
    )  # fmt: skip

    said = (lab.state_folder / "asked" / asking.transcript).read_text()
    assert "WROTE" not in said
    assert "STATE []" in said
    assert proposal is not None


@pytest.mark.parametrize(
    ("words", "outcome", "rests_hours"),
    [
        ("Claude AI usage limit reached|{epoch}", "limit until", 2.0),
        ("You've hit your usage limit. Try again in 3 hours 12 minutes.", "limit until", 3.2),
        ("ERROR 429 too many requests", "limit until", 0.5),
        ("Invalid API key · Please run /login", "not logged in. Next: ", 1.0),
        ("Segmentation fault", "no change (exit code 3)", 1 / 60),
    ],
)  # fmt: skip
def test_why_no_change_came_is_said_and_respected(
    lab, tmp_path, words, outcome, rests_hours
):
    words = words.format(epoch=int(time.time() + 7200))

    one, proposal, asking = asked(lab, tmp_path, f"print({words!r}); sys.exit(3)")

    assert proposal is None
    assert asking.outcome.startswith(outcome)
    assert one.resting_until - time.time() == pytest.approx(3600 * rests_hours, abs=20)


def test_what_looks_like_a_time_and_is_none_does_not_end_a_rest():
    now = time.time()

    for words in ("limit reached, request 1700000000", "usage limit, try in 1 s"):
        assert (
            billing.parse_limit_end(words, now) == now + billing.DEFAULT_LIMIT_SECONDS
        )
    for words in ("usage limit, try again in 999999 days", "limit until 2999999999"):
        assert billing.parse_limit_end(words, now) == now + billing.MAX_LIMIT_SECONDS


def test_both_runs_are_on_the_bill_and_the_first_change_is_not_lost(lab, tmp_path):
    _, proposal, asking = asked(
        lab, tmp_path,
        """print('{"type":"result","total_cost_usd":0.1,"usage":{"input_tokens":9,"output_tokens":4}}')""",
        "s = open('train.py').read()",
        "if 'Your last answer was refused' not in prompt:",
        "    open('train.py','w').write(s.replace('DEPTH = 4', 'DEPTH = ('))",
        "else:",
        "    assert '<data reason ' in prompt and '+DEPTH = (' in prompt",
        IDEA,
    )  # fmt: skip

    assert proposal.title == "deeper"
    assert "not Python" in proposal.refused
    assert (asking.dollars, asking.tokens_in, asking.tokens_out) == (0.2, 18, 8)


def test_an_agent_stops_where_its_bill_reaches_the_dollars_of_the_night(lab, tmp_path):
    program = tmp_path / "agent.py"
    program.write_text(
        """print('{"type":"result","total_cost_usd":0.5}')\n""" + DEEPER + "\n" + IDEA
    )
    said = []
    desk = open_toolkit(lab.folder, Program(dollars=0.4))
    desk.notify = said.append
    one = process.Agent(f'cmd:"{sys.executable} {program}"', desk)
    ledger = Ledger(lab.ledger_path)

    first, second = one.propose(ledger), one.propose(ledger)

    assert first.title == "deeper"
    assert second is None
    assert one.exhausted
    assert "what this night may spend is spent" in said[0]


def test_a_command_that_is_gone_in_the_night_is_a_rest_and_no_traceback(lab, tmp_path):
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    one = process.Agent(f"cmd:{program}", open_toolkit(lab.folder, Program()))
    program.unlink()
    ledger = Ledger(lab.ledger_path)

    assert one.propose(ledger) is None

    assert "FileNotFoundError" in ledger.load_proposer_calls()[-1].outcome
    assert one.resting_until > 0


def test_folders_without_end_are_a_rest_and_no_traceback(lab, tmp_path):
    one, proposal, _ = asked(
        lab, tmp_path, DEEPER,
        "for _ in range(1500): os.mkdir('d'); os.chdir('d')",
    )  # fmt: skip

    assert proposal is None or "DEPTH = 8" in proposal.source
    assert proposal is not None or one.resting_until > 0


@pytest.mark.skipif(not command.find_bubblewrap(), reason="no bubblewrap here")
def test_it_sees_no_other_agents_login(lab, tmp_path):
    other = registry.create_agent_home("codex") / ".codex" / "auth.json"
    other.parent.mkdir()
    other.write_text("hunter2")

    _, _, asking = asked(
        lab, tmp_path,
        f"print(os.path.exists({str(other)!r}), os.listdir({str(registry.locate_agent_homes())!r}))",
    )  # fmt: skip

    said = (lab.state_folder / "asked" / asking.transcript).read_text()
    assert said.startswith("False ['cmd-")


def test_a_limit_that_names_an_hour_ends_at_that_hour():
    now = time.mktime((2026, 1, 5, 22, 30, 0, 0, 0, -1))

    assert billing.parse_limit_end("limit reached, resets 3am", now) - now == 4.5 * 3600
    assert (
        billing.parse_limit_end("usage limit. try again at 11:05 PM", now) - now
        == 35 * 60
    )


def test_check_says_how_an_agent_does_before_the_night(lab, tmp_path, monkeypatch):
    def state(name, code, *env):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return named_states((name,), Program(), lab.folder)[name].state

    assert "HOME=" in state("codex", "true")
    assert "codex login" in state("codex", "true")
    monkeypatch.setenv("CODEX_API_KEY", "k")
    assert state("codex", "true").startswith("ok")
    busy = "echo 429: usage limit, try again in 2 hours; exit 1"
    assert state("codex", busy).startswith("limit until ")


def test_costs_are_what_its_json_lines_say_or_unknown():
    claude = '{"type":"result","total_cost_usd":0.12,"usage":{"input_tokens":9,"output_tokens":4}}'
    codex = '{"type":"turn.completed","usage":{"input_tokens":7,"output_tokens":2}}'

    opencode = (
        '{"type":"step_finish","part":{"cost":0,"tokens":{"input":5,"output":1}}}'
    )

    assert billing.parse_usage(f"{opencode}\n{opencode}\n") == AgentUsage(None, 10, 2)
    assert billing.parse_usage(f"x\n{claude}\n") == AgentUsage(0.12, 9, 4)
    assert billing.parse_usage(f"{codex}\n{codex}\n[1]\n{{") == AgentUsage(None, 14, 4)
    assert billing.parse_usage('{"total_cost_usd": -1}') == AgentUsage()


def test_a_command_that_is_not_there_says_how_to_get_it(lab, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(LabError, match="npm install -g @openai/codex"):
        load_proposers(("codex",), Program(), lab.folder, 0)
    with pytest.raises(LabError, match="no command"):
        load_proposers(('cmd:"x',), Program(), lab.folder, 0)


def test_every_row_says_how_a_person_logs_in_once():
    for name, kind in registry.AGENT_SPECS.items():
        assert kind.login_hint, name
        assert kind.login_variables, name
        assert kind.install_hint, name
        prompt_is_no_argument = (
            kind.prompt_on_stdin
            or registry.READ_PROMPT_FILE in kind.argv
            or "{prompt}" in kind.argv
        )
        assert prompt_is_no_argument, name


def test_an_agent_drives_a_night_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    lab = nights.line_lab(tmp_path / "lab")
    program = tmp_path / "agent.py"
    program.write_text(
        textwrap.dedent("""
        import re, sys
        prompt = sys.stdin.read()
        found = int(re.search(r"(\\d+) experiments so far", prompt)[1])
        source = open("train.py").read()
        open("train.py", "w").write(re.sub(r"WEIGHT_INIT = [0-9.]+", f"WEIGHT_INIT = 0.{found + 1}", source))
        open("IDEA.md", "w").write(f"TITLE: start at 0.{found + 1}\\nREASON: r\\nEXPECTED: ?")
        """)
    )

    done = nights.command(
        lab, "run", "--experiments", "30", "--proposer", f"cmd:{sys.executable} {program}"
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    rows = Ledger(lab.ledger_path).load_rows()
    by = [row.author for row in rows[1:]]
    assert any(author.startswith("cmd:") for author in by)
    # The harness itself has the second look that ends a night.
    assert {author.split(":")[0] for author in by} <= {"cmd", "search", "autoresearch"}
    assert not (lab.state_folder / "runs").exists()


def sleepers(mark):
    """Processes that still sleep for so long."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if mark.encode() in file.read():
                        found.append(int(name))
            except OSError:
                pass
    return found
