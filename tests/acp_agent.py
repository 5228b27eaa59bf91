"""A small agent of the Agent Client Protocol, for tests: it behaves, or it does not.

    python acp_agent.py TRICK [WORDS...]

It answers `initialize` and `session/new`, and does its trick when it is prompted. Files
are changed through the client; what the client answers is printed on stderr, so that it
stands in the transcript.
"""

import json
import os
import sys
import time
from pathlib import Path

IDEA = "TITLE: deeper\nREASON: more layers\nEXPECTED: -0.01\n"
TRICK, WORDS = sys.argv[1], sys.argv[2:]
OPTIONS = [
    {"optionId": "always", "name": "Always", "kind": "allow_always"},
    {"optionId": "yes", "name": "Once", "kind": "allow_once"},
    {"optionId": "no", "name": "No", "kind": "reject_once"},
]


def send(**fields):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **fields}) + "\n")
    sys.stdout.flush()


def heard():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


class Talk:
    """One connection, as far as it got."""

    def __init__(self):
        self.count, self.cwd, self.prompt = 0, "", ""

    def ask(self, method, **params):
        """A request to the client; its result, or the error as a text."""
        self.count += 1
        send(id=f"a{self.count}", method=method, params={"sessionId": "s", **params})
        while (answer := heard()).get("id") != f"a{self.count}":
            pass
        said = answer.get("result", answer.get("error"))
        print(f"{method} {params.get('path', '')} -> {said}", file=sys.stderr)
        return said

    def tell(self, **update):
        send(method="session/update", params={"sessionId": "s", "update": update})

    def change(self, before="DEPTH = 4", after="DEPTH = 8"):
        """What a good agent does: read, change, write, and say what it was."""
        source = self.ask("fs/read_text_file", path=f"{self.cwd}/train.py")["content"]
        source = source.replace(before, after)
        self.ask("fs/write_text_file", path=f"{self.cwd}/train.py", content=source)
        self.ask("fs/write_text_file", path=f"{self.cwd}/IDEA.md", content=IDEA)

    def permission(self, kind, *paths, **more):
        tool = {"toolCallId": f"t{self.count}", "kind": kind, "title": kind, **more}
        tool["locations"] = [{"path": path} for path in paths]
        answer = self.ask("session/request_permission", toolCall=tool, options=OPTIONS)
        print(f"LEAVE {kind} {paths} {answer['outcome']}", file=sys.stderr)
        return answer["outcome"].get("optionId") == "yes"


# -- tricks: each is called once the prompt is there -----------------------------------


def behaves(talk):
    assert "Make ONE change to train.py" in talk.prompt
    talk.tell(
        sessionUpdate="agent_message_chunk", content={"type": "text", "text": "I read"}
    )
    talk.change()
    for amount in (0.01, 0.03):
        cost = {"amount": amount, "currency": "USD"}
        talk.tell(sessionUpdate="usage_update", used=9, size=99, cost=cost)
    return {"usage": {"inputTokens": 11, "outputTokens": 5, "totalTokens": 16}}


def greets(talk):
    """What `check` asks for."""
    talk.ask("fs/write_text_file", path="IDEA.md", content="TITLE: ok\n")


def asks(talk):
    """Asks for leave, and does only what it got leave for."""
    talk.permission("execute", rawInput={"command": "rm -rf /"})
    talk.permission("edit", "/etc/passwd")
    talk.permission("edit", f"{talk.cwd}/../train.py")
    talk.permission("edit")
    talk.permission("edit", content=[{"type": "diff", "path": "/etc/x", "newText": ""}])
    talk.permission("delete", f"{talk.cwd}/train.py")
    talk.permission("fetch", rawInput={"url": "http://example"})
    talk.tell(sessionUpdate="tool_call", toolCallId="late", kind="execute", title="x")
    talk.ask(
        "session/request_permission", toolCall={"toolCallId": "late"}, options=OPTIONS
    )
    if talk.permission("edit", f"{talk.cwd}/train.py"):
        train = Path(talk.cwd) / "train.py"
        train.write_text(train.read_text().replace("DEPTH = 4", "DEPTH = 8"))
        (Path(talk.cwd) / "IDEA.md").write_text(IDEA)


def escapes(talk):
    """Tries to read and write where it may not, then behaves."""
    folder = Path(talk.cwd)
    (folder / "link").symlink_to(WORDS[0])
    (folder / "folder").symlink_to(Path(WORDS[0]).parent)
    os.mkfifo(folder / "pipe")
    name = Path(WORDS[0]).name
    for path in (
        WORDS[0],
        f"{talk.cwd}/../{name}",
        f"../../{name}",
        f"{talk.cwd}/link",
        f"{talk.cwd}/folder/{name}",
        f"{talk.cwd}/pipe",
        talk.cwd,
        f"{talk.cwd}x/{name}",
        "",
        "a\0b",
        "\ud800",
        7,
    ):
        talk.ask("fs/read_text_file", path=path)
        talk.ask("fs/write_text_file", path=path, content="STOLEN")
    talk.ask("fs/write_text_file", path="new/folder/x.txt", content="mine")
    talk.change()


def reads(talk):
    """Some lines of a file."""
    found = talk.ask("fs/read_text_file", path="train.py", line=2, limit=1)
    assert found == {"content": "DEPTH = 4  # 1 .. 9\n"}, found
    talk.change()


def unknown(talk):
    for method in ("terminal/create", "fs/delete", "session/load"):
        assert talk.ask(method)["code"] == -32601
    assert (
        talk.ask("fs/read_text_file", path="train.py", sessionId="z")["code"] == -32602
    )
    send(method="_ours/whatever", params=[1, 2])
    talk.change()


def noisy(talk):
    print("migrating the database ...\n[1, 2]\n7\n", flush=True)
    talk.change()


def garbage(talk):
    for _ in range(100_000):
        print("x" * 50)


def flood(talk):
    chunk = {"type": "text", "text": "y" * 60_000}
    while True:
        talk.tell(sessionUpdate="agent_message_chunk", content=chunk)


def long_line(talk):
    print("z" * (5 << 20), flush=True)
    talk.change()


def deaf(talk):
    """Asks and asks and never reads an answer."""
    path = f"{talk.cwd}/big.txt"
    (Path(talk.cwd) / "big.txt").write_text("b" * 1_000_000)
    for number in range(1000):
        params = {"sessionId": "s", "path": path}
        send(id=f"d{number}", method="fs/read_text_file", params=params)
    time.sleep(60)


def hangs(talk):
    talk.change()
    time.sleep(77.5)


def stops(talk):
    """Works on until it is told to stop, and then says what it took."""
    talk.change()
    while heard().get("method") != "session/cancel":
        pass
    asked = talk.permission("edit", f"{talk.cwd}/train.py")
    assert not asked
    return {"stopReason": "cancelled", "usage": {"inputTokens": 3, "outputTokens": 4}}


def dies(talk):
    talk.change()
    os._exit(9)


def refuses(talk):
    return {"stopReason": "refusal"}


def fails(talk):
    send(id=talk.id, error={"code": int(WORDS[0]), "message": " ".join(WORDS[1:])})
    time.sleep(60)


def main():
    talk = Talk()
    while True:
        asked = heard()
        method, talk.id, params = asked["method"], asked.get("id"), asked.get("params")
        if method == "initialize":
            assert params["clientCapabilities"]["fs"] == {
                "readTextFile": True,
                "writeTextFile": True,
            }
            version = 7 if TRICK == "future" else params["protocolVersion"]
            send(id=talk.id, result={"protocolVersion": version, "authMethods": []})
        elif method == "session/new" and TRICK == "locked":
            error = {"code": -32000, "message": "Authentication required"}
            send(id=talk.id, error=error)
        elif method == "session/new":
            talk.cwd = params["cwd"]
            assert params["mcpServers"] == []
            send(id=talk.id, result={"sessionId": "s"})
        elif method == "session/prompt":
            talk.prompt = params["prompt"][0]["text"]
            number = talk.id
            result = globals()[TRICK](talk) or {}
            send(id=number, result={"stopReason": "end_turn", **result})


if __name__ == "__main__":
    main()
