"""Outside agents: by MCP, by the guide, and people who pause a night."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from autoresearch import __version__
from autoresearch.commands import mcp, queue
from autoresearch.loop import research
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.sandbox.process import StopFlag
from tests import nights

FASTER = "<<<<<<< SEARCH\nMOMENTUM = 0.5  # 0 .. 0.99\n=======\nMOMENTUM = 0.6  # 0 .. 0.99\n>>>>>>> REPLACE"


@pytest.fixture
def lab(tmp_path):
    """A lab with a baseline and one verdict."""
    found = nights.line_lab(tmp_path / "lab")
    nights.run(found, nights.rate(0.02))
    return found


@pytest.fixture
def running(lab):
    """A night that waits for letters, in a thread of this process."""
    stop = StopFlag()
    ready = threading.Event()

    def work():
        asked = session.SessionOptions(proposers=("mailbox",), seed=1)
        with session.open_session(lab, asked, stop) as (opened, _):
            ready.set()
            for _ in research(opened):
                pass

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(20)
    yield lab
    stop.soon = True
    thread.join(20)


def test_a_client_reads_proposes_waits_and_goes_on(running):
    desk = mcp.LabTools(running, "mcp")

    assert "LEARNING_RATE = 0.02" in desk.read_context()
    said = desk.propose("more momentum", FASTER, "it is a ravine", "mcp:test")
    assert said.startswith("Experiment 2 is queued")
    verdict = asyncio.run(desk.wait_for_verdict(2, 60))

    assert json.loads(verdict.splitlines()[1])["proposed_by"] == "human:mcp:test"
    assert "Go on: read_context" in verdict
    assert verdict.startswith("<data verdict ")  # titles and reasons are others' words
    assert "-MOMENTUM = 0.5" in desk.show_experiment(2)
    assert '"experiment": 2' in desk.list_experiments()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("<<<<<<< SEARCH\nno such line\n=======\nx\n>>>>>>> REPLACE", "no line of"),
        ("", "changes nothing"),
        ("prepare.py\n" + FASTER, "only train.py"),
    ],
)
def test_what_does_not_fit_is_said_at_once_and_queues_nothing(lab, change, why):
    said = mcp.LabTools(lab).propose("x", change)

    assert said.startswith("Refused, nothing was queued")
    assert why in said
    assert Ledger(lab.ledger_path).load_open_proposals() == ()


def test_nobody_waits_for_an_experiment_that_is_not_there(lab):
    desk = mcp.LabTools(lab)
    desk.propose("more momentum", FASTER)

    assert "no experiment 9" in asyncio.run(desk.wait_for_verdict(9, 0))
    assert "wait_for_verdict again" in asyncio.run(desk.wait_for_verdict(2, 0))


def test_the_five_tools_are_served_by_stdio(lab):
    pytest.importorskip("mcp")
    from mcp import StdioServerParameters
    from mcp.client import Client

    async def talk():
        command = ["-m", "autoresearch", "mcp", str(lab.folder)]
        server = StdioServerParameters(command=sys.executable, args=command)
        async with Client(server) as client:
            tools = sorted(t.name for t in (await client.list_tools()).tools)
            read = await client.call_tool("read_context", {})
            return tools, read.content[0].text

    tools, text = asyncio.run(talk())

    assert tools == [
        "list_experiments", "propose", "read_context", "show_experiment",
        "wait_for_verdict",
    ]  # fmt: skip
    assert "# train.py to start from" in text


def test_by_http_nothing_is_said_without_the_token(lab):
    pytest.importorskip("mcp")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = nights.start(lab, "mcp", ".", "--http", str(port))
    url = f"http://127.0.0.1:{port}/mcp"
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {},
                   "clientInfo": {"name": "t", "version": "1"}},
    }  # fmt: skip

    def ask(token):
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "authorization": f"Bearer {token}",
        }
        request = urllib.request.Request(url, json.dumps(hello).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except urllib.error.URLError:
            return 0, ""

    try:
        nights.wait_for(lambda: ask("x")[0] != 0, seconds=60)
        refused = ask("x")
        status, said = ask(mcp.load_or_create_token(lab))
    finally:
        nights.kill(server)

    assert refused[0] == 401
    assert status == 200
    assert "autoresearch" in said
    assert f'"version":"{__version__}"' in said.replace(": ", ":")
    assert (lab.state_folder / "mcp-token").stat().st_mode & 0o077 == 0


def test_the_guide_says_every_step_and_what_is_enforced(lab):
    said = nights.command(lab, "guide").stdout

    for words in ("autoresearch context", "--wait 100", "never ask"):
        assert words in said
    assert "change one constant, or else at most 80 lines" in said
    assert "nohup autoresearch run --proposer mailbox" in said  # nothing runs here


def test_program_md_ends_with_the_line_for_coding_agents(lab):
    last = lab.read_file("program.md").rstrip().splitlines()[-1]

    assert last == "Coding agents: run autoresearch guide and follow it."


def test_the_context_is_the_same_for_a_shell(lab):
    assert nights.command(lab, "context").stdout.rstrip() == (
        mcp.LabTools(lab).read_context().rstrip()
    )


def test_an_agent_in_a_shell_gets_its_verdict_in_two_short_waits(running):
    idea = running.state_folder / "idea.py"
    idea.write_text(
        running.read_file("train.py").replace("MOMENTUM = 0.5", "MOMENTUM = 0.7")
    )
    queued = nights.command(running, "try", str(idea), "momentum", "--by", "codex")
    assert queued.returncode == 0, queued.stderr

    shown = nights.command(running, "show", "2", "--wait", "60")

    assert shown.returncode == 0, shown.stderr
    assert "human:codex" in shown.stdout


def test_pause_begins_nothing_new_and_resume_goes_on(running):
    nights.command(running, "pause")
    mcp.LabTools(running).propose("more momentum", FASTER)
    with pytest.raises(AssertionError):
        nights.wait_for(lambda: Ledger(running.ledger_path).load_row(2), seconds=2)

    nights.command(running, "resume")

    nights.wait_for(lambda: Ledger(running.ledger_path).load_row(2), seconds=30)


def test_a_night_cannot_be_written_to_by_a_client(lab):
    before = subprocess.run(
        ("git", "-C", str(lab.folder), "rev-parse", "HEAD"), capture_output=True
    ).stdout
    desk = mcp.LabTools(lab)

    desk.read_context(), desk.list_experiments(), desk.show_experiment(1)

    after = subprocess.run(
        ("git", "-C", str(lab.folder), "rev-parse", "HEAD"), capture_output=True
    ).stdout
    assert before == after


def test_a_client_changes_the_file_that_it_was_shown(lab):
    desk = mcp.LabTools(lab)
    ledger = Ledger(lab.ledger_path)
    ledger.series = ledger.find_last_series()
    shown = next(row for row in ledger.load_rows() if row.blob != ledger.champion.blob)
    ledger.set_start(shown.blob)
    line = next(
        text
        for text in ledger.load_source(shown.blob).splitlines()
        if text.startswith("LEARNING_RATE")
    )

    assert line in desk.read_context()
    said = desk.propose(
        "x", f"<<<<<<< SEARCH\n{line}\n=======\n{line}  #\n>>>>>>> REPLACE"
    )

    assert "is queued" in said
    assert ledger.load_open_proposals()[0].parent == shown.blob


def test_a_refused_try_says_why_at_once(running):
    done = nights.command(
        running,
        "try",
        str(running.file_path("train.py")),
        "nothing new",
        "--wait",
        "60",
    )

    assert done.returncode == 5
    assert "nothing changed" in done.stdout


def test_whoever_waits_for_a_paused_night_is_told_so(running):
    said = nights.command(running, "pause").stdout
    idea = running.state_folder / "idea.py"
    idea.write_text(
        running.read_file("train.py").replace("MOMENTUM = 0.5", "MOMENTUM = 0.7")
    )
    done = nights.command(running, "try", str(idea), "momentum", "--wait", "0.5")
    shown = nights.command(running, "show", "2")
    status = nights.command(running, "status").stdout
    guide = nights.command(running, "guide").stdout

    assert "the current run continues" in said
    for waiting in (done, shown):
        assert waiting.returncode == 3
        assert "paused" in waiting.stderr
        assert "Next: autoresearch resume" in waiting.stderr
    assert "paused" in status
    assert "do not resume it yourself" in guide


def test_an_experiment_that_nobody_proposed_is_not_waited_for_in_words(lab):
    done = nights.command(lab, "show", "77")

    assert done.returncode == 3
    assert "there is no experiment 77" in done.stderr


def test_a_file_is_compared_with_what_it_was_made_of(lab):
    ledger = Ledger(lab.ledger_path)
    ledger.series = ledger.find_last_series()
    champion = ledger.load_source(ledger.champion.blob)
    other = next(row for row in ledger.load_rows() if row.blob != ledger.champion.blob)
    ledger.set_start(other.blob)
    shown = ledger.load_source(other.blob)

    of_shown = shown.replace("MOMENTUM = 0.5", "MOMENTUM = 0.7")
    of_champion = champion.replace("MOMENTUM = 0.5", "MOMENTUM = 0.7")

    assert queue.find_nearest_base(ledger, of_shown).blob == other.blob
    assert queue.find_nearest_base(ledger, of_champion).blob == ledger.champion.blob


def test_a_port_that_somebody_has_is_said_before_anything_is_promised(lab):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = nights.command(lab, "mcp", "--http", str(taken.getsockname()[1]))

    assert done.returncode == 2
    assert "is not available" in done.stderr
    assert "mcp-token" not in done.stdout
