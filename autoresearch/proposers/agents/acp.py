"""The Agent Client Protocol, our side of it: one session, one prompt, one turn.

JSON-RPC 2.0 over a command's stdin and stdout, one message a line, version 1 of the
protocol. We ask `initialize`, `session/new`, `session/prompt`; the agent tells
(`session/update`) and asks back: files of its folder, and leave to use a tool.

Promises: never waits, so the caller's clock holds; a line, what waits to be sent and
what is kept have a largest size; files are read and written below the agent's folder
only, no link followed; a tool gets leave for reading and editing there and for nothing
else; an unknown request is answered with an error; some lines that are no messages are
passed over, as agents print them, more are the end of the talk.

Not covered: terminals, MCP servers, old sessions, modes, pictures; `authenticate`, for
which a person has to be there.
"""

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autoresearch import __version__
from autoresearch.text import to_one_line

PROTOCOL_VERSION = 1
MAX_LINE_BYTES = 4 << 20
MAX_FILE_BYTES = 1 << 20
MAX_PENDING_BYTES = 16 << 20  # answers that the agent does not fetch
MAX_TRANSCRIPT_BYTES = 2 << 20  # of the end of the talk
MAX_MESSAGE_CHARACTERS = 3000  # of the end of what the agent said to a person
MAX_NOISE_LINES = 200  # on stdout that are no messages
MAX_TOOL_CALLS = 2000  # whose details are remembered

AUTH_REQUIRED = -32000
METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32601, -32602, -32603
RESOURCE_NOT_FOUND = -32002
# What a tool may be for, and whether it has to name the files it is for.
ALLOWED_TOOL_KINDS = {"read": True, "edit": True, "search": True, "think": False}

JsonObject = dict[str, object]


class RequestRefused(Exception):
    """A request of the agent's that gets an error for an answer."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


@dataclass(frozen=True, slots=True)
class AgentUsage:
    """What an agent says that it took; None: it did not say."""

    dollars: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class AcpClient:
    """One talk: fed with what the agent prints, says what to send it."""

    def __init__(self, folder: Path, prompt: str, cancel_at: float) -> None:
        self.is_finished = False
        self.stop_reason = (
            ""  # the reason the turn stopped for, in the protocol's words
        )
        self.failure = ""  # why the talk failed; "": it did not
        self.usage = AgentUsage()
        self._folder = AgentFolder(folder)
        self._prompt = prompt
        self._cancel_at = cancel_at  # time.monotonic(): ask it to stop then
        self._cancelled = False
        self._session_id = ""
        self._line_buffer = bytearray()  # the beginning of a line
        self._send_buffer = bytearray()
        self._transcript = bytearray()
        self._message_text = ""
        self._noise_lines = 0
        self._tool_calls: dict[str, JsonObject] = {}
        self._pending_method = ""  # what of ours waits for its answer
        self._request_id = -1
        abilities = {"fs": {"readTextFile": True, "writeTextFile": True}}
        about = {"name": "autoresearch", "version": __version__}
        self._send_request(
            "initialize",
            {
                "protocolVersion": PROTOCOL_VERSION,
                "clientCapabilities": abilities | {"terminal": False},
                "clientInfo": about,
            },
        )

    # -- what the caller needs ---------------------------------------------------------

    def feed_stdout(self, said: bytes) -> None:
        """Take what came from stdout."""
        self._line_buffer += said
        *lines, rest = bytes(self._line_buffer).split(b"\n")
        self._line_buffer[:] = rest
        for line in lines:
            if self.is_finished:
                return
            self._parse_line(line)
        if len(rest) > MAX_LINE_BYTES:
            self._fail(f"a line of more than {MAX_LINE_BYTES >> 20} MB")

    def feed_stderr(self, said: bytes) -> None:
        """Take what came from stderr, which is for people."""
        self._append_transcript(said)

    def pending_input(self) -> bytearray:
        """What is to be sent; the caller deletes what it has sent."""
        if (
            self._session_id
            and not self._cancelled
            and time.monotonic() > self._cancel_at
        ):
            self._cancelled = True
            self._send_message(
                method="session/cancel", params={"sessionId": self._session_id}
            )
        return self._send_buffer

    def close(self) -> None:
        """Let go of the folder."""
        self._folder.close()

    def build_transcript(self) -> bytes:
        """The end of the talk, with what was said to a person, and why it failed."""
        words = f"\n{to_one_line(self._message_text)}\n"
        if self.failure:
            words += f"acp: {self.failure}\n"
        return bytes(self._transcript) + words.encode(errors="replace")

    # -- sending -----------------------------------------------------------------------

    def _send_request(self, method: str, params: JsonObject) -> None:
        self._request_id += 1
        self._pending_method = method
        self._send_message(id=self._request_id, method=method, params=params)

    def _send_message(self, **fields: object) -> None:
        line = json.dumps({"jsonrpc": "2.0", **fields}).encode() + b"\n"
        self._send_buffer += line
        self._append_transcript(b"> " + line[:300].rstrip() + b"\n")
        if len(self._send_buffer) > MAX_PENDING_BYTES:
            self._fail("it asks and does not listen")

    def _append_transcript(self, words: bytes) -> None:
        self._transcript += words
        del self._transcript[:-MAX_TRANSCRIPT_BYTES]

    def _fail(self, why: str) -> None:
        self.is_finished, self.failure = True, self.failure or to_one_line(why)[:400]

    # -- hearing -----------------------------------------------------------------------

    def _parse_line(self, line: bytes) -> None:
        self._append_transcript(line + b"\n")
        if len(line) > MAX_LINE_BYTES:
            self._fail(f"a line of more than {MAX_LINE_BYTES >> 20} MB")
            return
        message = parse_message(line)
        if message is None:
            self._noise_lines += bool(line.strip())
            if self._noise_lines > MAX_NOISE_LINES:
                self._fail("what it prints is not the protocol")
        elif isinstance(method := message.get("method"), str):
            self._receive_request(method, message)
        elif message.get("id") == self._request_id and self._pending_method:
            self._receive_response(message)

    def _receive_response(self, message: JsonObject) -> None:
        """It answered what we asked: go on to the next step."""
        asked, self._pending_method = self._pending_method, ""
        result, error = as_dict(message.get("result")), message.get("error")
        if error is not None:
            self._fail(describe_error(as_dict(error), asked))
        elif asked == "initialize":
            if result.get("protocolVersion") != PROTOCOL_VERSION:
                self._fail(
                    f"it speaks another version than {PROTOCOL_VERSION} of the protocol"
                )
                return
            self._send_request(
                "session/new", {"cwd": str(self._folder.path), "mcpServers": []}
            )
        elif asked == "session/new":
            session = result.get("sessionId")
            if not isinstance(session, str) or not 0 < len(session) <= 1000:
                self._fail("it opened no session")
                return
            self._session_id = session
            text = {"type": "text", "text": self._prompt}
            self._send_request(
                "session/prompt", {"sessionId": session, "prompt": [text]}
            )
        else:
            self.is_finished, self.stop_reason = (
                True,
                to_one_line(str(result.get("stopReason")))[:40],
            )
            self._add_usage(as_dict(result.get("usage")))

    def _receive_request(self, method: str, message: JsonObject) -> None:
        """It tells something, or asks and gets one answer."""
        params = as_dict(message.get("params"))
        if "id" not in message:
            if method == "session/update":
                self._receive_update(as_dict(params.get("update")))
            return
        try:
            self._send_message(
                id=message["id"], result=self._build_response(method, params)
            )
        except RequestRefused as refused:
            error = {"code": refused.code, "message": str(refused)}
            self._send_message(id=message["id"], error=error)

    def _build_response(self, method: str, params: JsonObject) -> JsonObject | None:
        """The result of a request, or RequestRefused."""
        if method not in CLIENT_METHODS:
            raise RequestRefused(
                METHOD_NOT_FOUND, f"there is no {to_one_line(method)[:80]} here"
            )
        if not self._session_id or params.get("sessionId") != self._session_id:
            raise RequestRefused(INVALID_PARAMS, "there is no such session")
        if method == "fs/read_text_file":
            return {"content": self._folder.read_lines(params)}
        if method == "fs/write_text_file":
            self._folder.write_file(params)
            return None
        return {"outcome": self._choose_permission(params)}

    def _choose_permission(self, params: JsonObject) -> JsonObject:
        """Leave to use a tool, or none: one of the options that it offers."""
        if self._cancelled:
            return {"outcome": "cancelled"}
        tool = as_dict(params.get("toolCall"))
        known = self._tool_calls.get(str(tool.get("toolCallId")), {})
        given = {key: value for key, value in tool.items() if value is not None}
        word = "allow" if self._folder.allows_tool({**known, **given}) else "reject"
        options = [as_dict(option) for option in as_list(params.get("options"))]
        for kind in (f"{word}_once", f"{word}_always"):
            for option in options:
                if option.get("kind") == kind:
                    return {"outcome": "selected", "optionId": option.get("optionId")}
        return {"outcome": "cancelled"}

    def _receive_update(self, update: JsonObject) -> None:
        """Something of the turn: words, a tool, a bill."""
        what = update.get("sessionUpdate")
        if what == "agent_message_chunk":
            words = as_dict(update.get("content")).get("text")
            if isinstance(words, str):
                self._message_text = (self._message_text + words)[
                    -MAX_MESSAGE_CHARACTERS:
                ]
        elif what in ("tool_call", "tool_call_update"):
            name = str(update.get("toolCallId"))[:200]
            if name in self._tool_calls or len(self._tool_calls) < MAX_TOOL_CALLS:
                kept = {
                    key: update[key]
                    for key in TOOL_CALL_FIELDS
                    if update.get(key) is not None
                }
                self._tool_calls[name] = self._tool_calls.get(name, {}) | kept
        elif what == "usage_update":
            cost = as_dict(update.get("cost"))
            amount = parse_number_below(cost.get("amount"), 1e6)
            # The sum so far. Some say 0 for a price that they do not know.
            if amount and cost.get("currency") == "USD":
                self.usage = AgentUsage(
                    amount, self.usage.tokens_in, self.usage.tokens_out
                )

    def _add_usage(self, usage: JsonObject) -> None:
        into, out = (
            parse_number_below(usage.get(name), 1 << 40)
            for name in ("inputTokens", "outputTokens")
        )
        self.usage = AgentUsage(
            self.usage.dollars,
            None if into is None else int(into),
            None if out is None else int(out),
        )


CLIENT_METHODS = (
    "fs/read_text_file",
    "fs/write_text_file",
    "session/request_permission",
)
TOOL_CALL_FIELDS = ("kind", "locations", "content")  # of a tool: what leave depends on


class AgentFolder:
    """The agent's folder: everything below it, and nothing through a link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Held open, so that replacing the folder by a link has no effect.
        self._root_descriptor = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        )

    def close(self) -> None:
        """Let go of it."""
        os.close(self._root_descriptor)

    def read_lines(self, params: JsonObject) -> str:
        """Lines of a text file, or RequestRefused."""
        first, most = params.get("line"), params.get("limit")
        with self._open_file(params, os.O_RDONLY) as file:
            text = os.read(file, MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise RequestRefused(INTERNAL_ERROR, "the file is too large")
        lines = text.decode(errors="replace").splitlines(keepends=True)
        start = max(0, first - 1) if type(first) is int else 0
        end = start + max(0, most) if type(most) is int else len(lines)
        return "".join(lines[start:end])

    def write_file(self, params: JsonObject) -> None:
        """A whole text file, made where it is missing, or RequestRefused."""
        content = params.get("content")
        if not isinstance(content, str):
            raise RequestRefused(INVALID_PARAMS, "content is no text")
        body = content.encode(errors="replace")
        if len(body) > MAX_FILE_BYTES:
            raise RequestRefused(INVALID_PARAMS, "the file would be too large")
        with self._open_file(params, os.O_WRONLY | os.O_CREAT) as file:
            os.truncate(file, 0)
            while body:
                body = body[os.write(file, body) :]

    def allows_tool(self, tool: JsonObject) -> bool:
        """Whether a tool may be used: of a harmless kind, and inside the folder."""
        kind = tool.get("kind")
        if not isinstance(kind, str) or kind not in ALLOWED_TOOL_KINDS:
            return False
        named = [as_dict(place) for place in as_list(tool.get("locations"))]
        parts = [as_dict(part) for part in as_list(tool.get("content"))]
        if any(part.get("type") == "terminal" for part in parts):
            return False
        named += [part for part in parts if part.get("type") == "diff"]
        try:
            for one in named:
                self._parse_path(one)
        except RequestRefused:
            return False
        return bool(named) or not ALLOWED_TOOL_KINDS[kind]

    def _parse_path(self, params: JsonObject) -> tuple[str, ...]:
        """The names on the way from the folder to a path, or RequestRefused."""
        path = params.get("path")
        if not isinstance(path, str) or not 0 < len(path) < 4096 or "\0" in path:
            raise RequestRefused(INVALID_PARAMS, "path is no path")
        pure = PurePosixPath(path)
        if pure.is_absolute():
            if not pure.is_relative_to(self.path):
                raise RequestRefused(INVALID_PARAMS, "the path leaves the folder")
            pure = pure.relative_to(self.path)
        if ".." in pure.parts or not pure.parts:
            raise RequestRefused(INVALID_PARAMS, "the path leaves the folder")
        return pure.parts

    @contextmanager
    def _open_file(self, params: JsonObject, flags: int) -> Iterator[int]:
        """A plain file below the folder, open, or RequestRefused."""
        *folders, name = self._parse_path(params)
        opened = [os.dup(self._root_descriptor)]
        try:
            for folder in folders:
                if flags & os.O_CREAT and not name_exists(folder, opened[-1]):
                    os.mkdir(folder, dir_fd=opened[-1])
                way = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                opened.append(os.open(folder, way, dir_fd=opened[-1]))
            how = flags | os.O_NOFOLLOW | os.O_NONBLOCK
            opened.append(os.open(name, how, 0o644, dir_fd=opened[-1]))
            found = os.fstat(opened[-1])
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise RequestRefused(INVALID_PARAMS, "that is no plain file")
            yield opened[-1]
        except FileNotFoundError:
            raise RequestRefused(RESOURCE_NOT_FOUND, "there is no such file") from None
        except (OSError, UnicodeError) as error:
            words = getattr(error, "strerror", None) or "that is no name"
            raise RequestRefused(INTERNAL_ERROR, words) from None
        finally:
            for descriptor in opened:
                os.close(descriptor)


def name_exists(name: str, folder: int) -> bool:
    """Whether something of this name is there, a broken link too."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def parse_message(line: bytes) -> JsonObject | None:
    """A message; None for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def describe_error(error: JsonObject, asked: str) -> str:
    """An error as the agent put it, with what is known of its code."""
    words = to_one_line(str(error.get("message")))
    detail = to_one_line(json.dumps(error.get("data"))) if error.get("data") else ""
    start = "not logged in: " if error.get("code") == AUTH_REQUIRED else ""
    return f"{start}{asked}: {words} {detail}"


def parse_number_below(value: object, most: float) -> float | None:
    """A number in [0, most); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < most else None


def as_dict(value: object) -> JsonObject:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """A JSON list, or an empty one for anything else."""
    return value if isinstance(value, list) else []
