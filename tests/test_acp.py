"""Agents by the Agent Client Protocol: they talk, and reach nothing but their folder."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from autoresearch.errors import LabError
from autoresearch.lab.program import Program
from autoresearch.proposers.agents import acp, process
from autoresearch.proposers.registry import check_proposers, load_proposers
from autoresearch.proposers.toolkit import open_toolkit
from autoresearch.records.ledger import Ledger
from tests import nights
from tests.test_agent import sleepers
from tests.test_context import night as short_night

PROGRAM = Path(__file__).parent / "acp_agent.py"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab with a baseline; agents' homes in a folder of the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = nights.line_lab(tmp_path / "lab")
    short_night(found.ledger_path).close()
    return found


def spec(*words):
    return f'acp:"{sys.executable} {PROGRAM} {" ".join(words)}"'


def asked(lab, *words):
    """The agent with this trick, asked once; (agent, proposal, asking, transcript)."""
    one = process.Agent(spec(*words), open_toolkit(lab.folder, Program()))
    ledger = Ledger(lab.ledger_path)
    proposal = one.propose(ledger)
    asking = ledger.load_proposer_calls()[-1]
    said = (lab.state_folder / "asked" / asking.transcript).read_text()
    return one, proposal, asking, said


def test_what_it_writes_through_the_client_is_the_proposal_and_its_bill_is_kept(lab):
    one, proposal, asking, said = asked(lab, "behaves")

    assert (proposal.title, proposal.author) == ("deeper", one.name)
    assert "DEPTH = 8" in proposal.source
    assert asking.outcome == "proposed"
    assert (asking.dollars, asking.tokens_in, asking.tokens_out) == (0.03, 11, 5)
    assert "I read" in said
    assert one.resting_until == 0


def test_a_bill_that_it_does_not_send_is_unknown(lab):
    _, proposal, asking, _ = asked(lab, "reads")

    assert proposal is not None
    assert (asking.dollars, asking.tokens_in, asking.tokens_out) == (None, None, None)


def test_it_gets_leave_to_edit_its_folder_and_for_nothing_else(lab):
    _, proposal, _, said = asked(lab, "asks")

    assert "DEPTH = 8" in proposal.source
    allowed = [line for line in said.splitlines() if line.startswith("LEAVE")]
    assert sum("'yes'" in line for line in allowed) == 1
    assert sum("'no'" in line for line in allowed) == 7
    assert "'always'" not in said


def test_it_reads_and_writes_below_its_folder_and_nowhere_else(lab, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")

    _, proposal, asking, said = asked(lab, "escapes", str(secret))

    assert "hunter2" not in said
    assert secret.read_text() == "hunter2"
    assert not list(tmp_path.rglob("STOLEN"))
    assert "DEPTH = 8" in proposal.source
    assert "new/folder/x.txt" in asking.outcome


def test_a_hard_link_to_a_file_outside_is_no_file_of_the_folder(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").write_text("hunter2")
    os.link(tmp_path / "secret", tmp_path / "work" / "mine")
    folder = acp.AgentFolder(tmp_path / "work")

    with pytest.raises(acp.RequestRefused):
        folder.read_lines({"path": "mine"})
    with pytest.raises(acp.RequestRefused):
        folder.write_file({"path": "mine", "content": "x"})
    folder.close()

    assert (tmp_path / "secret").read_text() == "hunter2"


def test_a_folder_that_is_swapped_for_a_link_stays_the_folder_it_was(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "else").mkdir()
    folder = acp.AgentFolder(tmp_path / "work")
    (tmp_path / "work").rename(tmp_path / "moved")
    (tmp_path / "work").symlink_to(tmp_path / "else")

    folder.write_file({"path": str(tmp_path / "work" / "x"), "content": "x"})
    folder.close()

    assert not (tmp_path / "else" / "x").exists()
    assert (tmp_path / "moved" / "x").read_text() == "x"


@pytest.mark.parametrize("trick", ["unknown", "noisy"])
def test_requests_that_nobody_knows_and_some_noise_are_no_end(lab, trick):
    _, proposal, asking, _ = asked(lab, trick)

    assert "DEPTH = 8" in proposal.source
    assert asking.outcome == "proposed"


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (("garbage",), "what it prints is not the protocol"),
        (("flood",), "no change"),
        (("long_line",), "a line of more than 4 MB"),
        (("deaf",), "it asks and does not listen"),
        (("future",), "another version than 1"),
        (("refuses",), "no change (exit code 1)"),
        (("locked",), "not logged in. Next: "),
        (("fails", "-32603", "usage", "limit,", "try", "again", "in", "2", "hours"), "limit until "),
        (("fails", "-32603", "out", "of", "luck"), "out of luck"),
    ],
)  # fmt: skip
def test_who_misbehaves_is_one_failed_asking(lab, words, outcome):
    one, proposal, asking, _ = asked(lab, *words)

    assert proposal is None
    assert outcome in asking.outcome
    assert one.resting_until > 0
    assert len(Ledger(lab.ledger_path).load_proposer_calls()) == 1


def test_who_dies_in_mid_turn_leaves_what_it_has_written(lab):
    _, proposal, asking, _ = asked(lab, "dies")

    assert "DEPTH = 8" in proposal.source
    assert asking.dollars is None


def test_before_its_limit_it_is_asked_to_stop_and_may_say_what_it_took(
    lab, monkeypatch
):
    monkeypatch.setattr(process, "AGENT_SECONDS", 4.0)

    _, proposal, asking, said = asked(lab, "stops")

    assert "cut off at its time limit" in proposal.reason
    assert (asking.tokens_in, asking.tokens_out) == (3, 4)
    assert "{'outcome': 'cancelled'}" in said


def test_who_does_not_stop_is_killed_at_its_limit(lab, monkeypatch):
    monkeypatch.setattr(process, "AGENT_SECONDS", 3.0)

    _, proposal, _, _ = asked(lab, "hangs")

    assert "cut off at its time limit" in proposal.reason
    assert not sleepers("acp_agent.py")


def test_a_night_that_ends_does_not_wait_for_it(lab):
    one = process.Agent(spec("hangs"), open_toolkit(lab.folder, Program()))
    threading.Timer(1.0, one.close).start()
    begun = time.monotonic()

    one.propose(Ledger(lab.ledger_path))

    assert time.monotonic() - begun < 20
    assert not sleepers("acp_agent.py")


def test_no_message_whatever_it_holds_is_a_traceback(tmp_path):
    (tmp_path / "work").mkdir()
    odd = (
        b'{"jsonrpc":"2.0","id":0,"result":[]}', b'{"id":0}', b"{", b"null", b"[" * 9999,
        b'{"id":0,"error":7}', b'{"id":0,"result":{"protocolVersion":true}}',
        b'{"id":{},"method":"fs/read_text_file","params":[]}', b'{"method":7,"id":1}',
        b'{"id":null,"method":"session/request_permission","params":{"options":7}}',
        b'{"method":"session/update","params":{"update":{"sessionUpdate":[]}}}',
        b'{"method":"session/update","params":{"update":{"sessionUpdate":"tool_call",'
        b'"locations":7}}}', b'{"id":' + b"9" * 5000 + b"}", b"\xff\xfe",
    )  # fmt: skip
    for line in odd:
        client = acp.AcpClient(tmp_path / "work", "p", time.monotonic() + 9)
        for words in (line, b'{"id":0,"result":{"protocolVersion":1}}', line):
            client.feed_stdout(words + b"\n")
        client.feed_stdout(b'{"id":1,"result":{"sessionId":"s"}}\n' + line + b"\n")
        client.close()
        assert client.build_transcript()


def test_the_names_in_the_table_are_started_by_their_own_flag():
    assert process.load_agent_spec("gemini").acp_argv[:2] == ("gemini", "--acp")
    assert process.load_agent_spec("opencode").acp_argv == ("opencode", "acp")
    assert process.load_agent_spec("codex").acp_argv == ()
    assert process.load_agent_spec('acp:"x --y"').acp_argv == ("x", "--y")
    with pytest.raises(LabError, match=r'acp:" names no command'):
        process.load_agent_spec("acp:")


def test_check_asks_it_once(lab):
    states = check_proposers((spec("greets"), spec("locked")), Program(), lab.folder)

    assert [
        words.split()[0].strip(",.")
        for words in (found.state for found in states.values())
    ] == ["ok", "not"]


def test_an_acp_agent_that_is_not_there_is_said_before_the_night(lab):
    with pytest.raises(LabError, match="not on the PATH"):
        load_proposers(('acp:"no-such-agent"',), Program(), lab.folder, 0)
