"""`autoresearch mcp`: serve a lab to clients of the Model Context Protocol.

Five tools: read the context, propose, wait for the verdict, show one experiment, list
all. A client proposes as `autoresearch try` does: its file is queued, and the running
night checks, trains, scores and decides. It cannot record, delete or score anything.

Transport is stdio, or streamable HTTP on the loopback address, where every request
needs the token in `.autoresearch/mcp-token`.

Not covered: several labs in one server; a client that never returns (its proposal gets
a verdict all the same).
"""

import asyncio
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoresearch import __version__
from autoresearch.commands import queue
from autoresearch.errors import LabError, NotReady
from autoresearch.experiment import Row
from autoresearch.lab import constants, reply_parser
from autoresearch.lab.folder import Lab
from autoresearch.proposers import agent_guide, context
from autoresearch.records.ledger import Ledger
from autoresearch.reporting import format, show, status
from autoresearch.text import strip_invisible, to_one_line

MAX_WAIT_SECONDS = 100.0  # clients give up on a call after about two minutes
MAX_ROWS = 200
POLL_SECONDS = 0.3
Scope = dict[str, Any]
ASGIApp = Callable[[Scope, Any, Any], Awaitable[None]]


class LabTools:
    """The five tools as methods that return text; they need no protocol.

    Names, parameters and docstrings of the methods are what a client is shown.
    """

    def __init__(self, lab: Lab, by: str = "mcp") -> None:
        self._lab = lab
        self._by = by  # who proposes, where a client does not say

    def read_context(self) -> str:
        """Everything you need to propose: program.md, the train.py to start from, all
        past experiments with their results, and the rules. Read it before each
        proposal."""
        with open_ledger(self._lab) as ledger:
            notes = "".join(
                f"Note: {fault}\n\n" for fault in status.find_program_faults(self._lab)
            )
            return notes + context.build_context(
                ledger, build_context_request(self._lab, ledger)
            )

    def propose(self, title: str, change: str, reason: str = "", by: str = "") -> str:
        """Queue one change to train.py as the next experiment. `change` is either
        search/replace blocks (<<<<<<< SEARCH, =======, >>>>>>> REPLACE), each matching
        one place of the champion's train.py, or the whole new file."""
        with open_ledger(self._lab) as ledger:
            start = ledger.starting_point  # what read_context shows
            if start is None:
                return "There is no champion yet. A person must run: autoresearch run"
            source = ledger.load_source(start.blob)
            header = f"TITLE: {to_one_line(title)}\nREASON: {to_one_line(reason)}"
            try:
                answer, new = reply_parser.apply_reply(
                    f"{header}\n{fence_whole_file(change)}", source
                )
                number, minutes = queue.queue_source(
                    self._lab,
                    ledger,
                    new,
                    answer.title,
                    by or self._by,
                    answer.reason,
                    start,
                )
            except (reply_parser.ReplyRejected, LabError) as error:
                return f"Refused, nothing was queued: {error}"
        when = f"in about {minutes:.1f} min"
        if self._lab.find_lock_holder() is None:
            when = "once a person starts autoresearch run"
        elif self._lab.pause_path.exists():
            when = "once a person resumes the run, which is paused"
        return (
            f"Experiment {number} is queued; its verdict will come {when}. Now call "
            f"wait_for_verdict({number}), and repeat the call until it is there."
        )

    async def wait_for_verdict(self, experiment: int, seconds: float = 60.0) -> str:
        """Wait for the verdict on an experiment, at most 100 seconds a call."""
        deadline = time.monotonic() + min(max(0.0, seconds), MAX_WAIT_SECONDS)
        while True:
            with open_ledger(self._lab) as ledger:
                row = ledger.load_row(experiment)
                known = any(
                    p.number == experiment for p in ledger.load_open_proposals()
                )
            if row is not None:
                verdict = context.quote_data("verdict", verdict_to_json(row))
                return f"{verdict}\nGo on: read_context, then propose the next change."
            if not known:
                return f"There is no experiment {experiment}."
            if time.monotonic() >= deadline:
                return f"No verdict on {experiment} yet. Call wait_for_verdict again."
            await asyncio.sleep(POLL_SECONDS)

    def show_experiment(self, experiment: int) -> str:
        """One experiment: verdict, scores, diff, and what its run printed (data)."""
        with open_ledger(self._lab) as ledger:
            row = ledger.load_row(experiment)
            if row is None:
                return f"There is no verdict on experiment {experiment}."
            diff = show.diff_from_parent(ledger, row)
        log = show.read_log(self._lab, row)[-6000:]
        return "\n\n".join(
            [
                context.quote_data("verdict", verdict_to_json(row)),
                context.quote_data("diff", strip_invisible(diff)[:20_000]),
                context.quote_data("log", strip_invisible(log)),
            ]
        )

    def list_experiments(self, last: int = 30) -> str:
        """The newest experiments, one a line of JSON, oldest first."""
        with open_ledger(self._lab) as ledger:
            rows = list(ledger.load_rows())[-min(max(1, last), MAX_ROWS) :]
        return context.quote_data("experiments", "\n".join(map(verdict_to_json, rows)))


def fence_whole_file(change: str) -> str:
    """A change in the form of a reply: a whole file is put in a Markdown fence."""
    if "SEARCH" in change or "```" in change or change.lstrip().startswith("{"):
        return change
    return f"````python\n{change}\n````"


def verdict_to_json(row: Row) -> str:
    """One experiment as a line of JSON, without the fields only programs need."""
    fields = format.row_to_json(row)
    names = (
        "experiment",
        "decision",
        "kind",
        "why",
        "title",
        "on_top_of",
        "value",
        "delta",
    )
    return json.dumps({name: fields[name] for name in (*names, "proposed_by")})


@contextmanager
def open_ledger(lab: Lab) -> Iterator[Ledger]:
    """Open the lab's ledger for one call: SQLite connections stay in their thread."""
    if not lab.ledger_path.exists():
        raise NotReady(f"{lab.folder} has no ledger yet. Next: autoresearch run")
    lower_is_better = constants.read_literal(
        lab.read_file("prepare.py"), "LOWER_IS_BETTER", True
    )
    ledger = Ledger(lab.ledger_path, lower_is_better=bool(lower_is_better))
    try:
        yield ledger
    finally:
        ledger.close()


def build_context_request(lab: Lab, ledger: Ledger) -> context.ContextRequest:
    """The request for the context of an outside client."""
    active = status.load_active_program(lab, ledger)
    metric = str(
        constants.read_literal(lab.read_file("prepare.py"), "METRIC", "the score")
    )
    titles = tuple(sorted(p.title for p in ledger.load_open_proposals()))
    request = context.ContextRequest(
        active.text,
        metric,
        agent_guide.describe_limits(active.program),
        pending_titles=titles,
    )
    return replace(request, ask=agent_guide.CONTEXT_INSTRUCTIONS)


# -- the protocol ----------------------------------------------------------------------


def build_server(lab: Lab, by: str) -> Any:
    """An MCP server with the five tools. Raises LabError without the mcp package."""
    try:
        from mcp.server import MCPServer
    except ImportError:
        raise LabError(
            "serving MCP needs the mcp package. Next: pip install -e '.[mcp]'"
        ) from None
    tools = LabTools(lab, by)
    server = MCPServer(
        "autoresearch",
        version=__version__,
        instructions=agent_guide.write_client_guide(),
        log_level="WARNING",  # stdout belongs to the protocol
    )
    for tool in (
        tools.read_context,
        tools.propose,
        tools.wait_for_verdict,
        tools.show_experiment,
        tools.list_experiments,
    ):
        server.add_tool(tool)
    return server


def serve_stdio(lab: Lab, by: str) -> None:
    """Serve the client that started this process, until it closes the pipe."""
    build_server(lab, by).run("stdio")


def serve_http(lab: Lab, by: str, port: int) -> None:
    """Serve on the loopback address, until a signal."""
    import uvicorn

    app = build_server(lab, by).streamable_http_app(host="127.0.0.1")
    protected = require_bearer_token(app, load_or_create_token(lab))
    uvicorn.run(protected, host="127.0.0.1", port=port, log_level="warning")


def require_free_port(port: int) -> None:
    """Raise LabError if this port of the loopback address cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "no such port"
            raise LabError(
                f"port {port} of 127.0.0.1 is not available: {why}. Next: choose "
                "another port with --http"
            ) from None


def require_bearer_token(app: ASGIApp, token: str) -> ASGIApp:
    """Wrap an application so that HTTP requests without the token get a 401."""
    expected = f"Bearer {token}".encode()

    async def check_token(scope: Scope, receive: Any, send: Any) -> None:
        sent = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or hmac.compare_digest(sent, expected):
            await app(scope, receive, send)
            return
        body = b'{"error": "needs the token of .autoresearch/mcp-token"}'
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return check_token


def load_or_create_token(lab: Lab) -> str:
    """The lab's token, created on first use and readable by this user only."""
    path: Path = lab.state_folder / "mcp-token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return to_one_line(path.read_text())
