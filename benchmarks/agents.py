"""Coding-agent command lines as proposers, on a scripted local model.

    python benchmarks/agents.py --agent opencode --agent codex --experiments 10 --json

Takes about 2 minutes per agent. The command lines are the real ones (npm install -g
opencode-ai @openai/codex); the model behind them is a local server with a script, which
asks for one shell command that changes a constant of lab `line` and writes IDEA.md.
What is tested is everything around: arguments, prompt, HOME, sandbox, diff, time limit.
Nothing is paid. With --quick a stand-in takes the place of the command line: twenty
lines of Python that send one request and run the command in the reply.

JSON keys, all but the first with the agent's name in front:
  quick                            whether --quick was given: then no number counts
  *_experiments                    experiments proposed by the agent
  *_failed                         of these, failed
  *_titled                         of these, with the title that IDEA.md gave
  *_by_search                      experiments proposed by the stand-in, `search`
  *_seconds_per_idea               wall time of one request to the agent, mean
  *_tokens_known                   requests whose tokens the agent reported
  *_outcomes                       what became of the requests
  *_wall_seconds                   the whole session
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.loop import research
from autoresearch.proposers.agents.registry import create_agent_home
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.sandbox.process import StopFlag
from tests.nights import line_lab

# With --quick, in place of an agent's command line.
STAND_IN = """
import json, subprocess, sys, urllib.request
sys.stdin.read()
tool = {"type": "function", "function": {"name": "bash"}}
body = {"messages": [{"role": "user", "content": "go"}], "tools": [tool]}
request = urllib.request.Request(
    sys.argv[1] + "/chat/completions",
    json.dumps(body).encode(),
    {"content-type": "application/json"},
)
with urllib.request.urlopen(request) as answer:
    message = json.load(answer)["choices"][0]["message"]
(call,) = message["tool_calls"]
words = json.loads(call["function"]["arguments"])["command"]
subprocess.run(["bash", "-c", words], check=True)
"""

COMMAND = (
    "sed -i -E 's/^WEIGHT_INIT = [-0-9.]+/WEIGHT_INIT = 0.{number:03}/' train.py && "
    "printf 'TITLE: start at 0.{number:03}\\nREASON: nearer to the slope\\n"
    "EXPECTED: -0.001\\n' > IDEA.md"
)


class Script(BaseHTTPRequestHandler):
    """The scripted model: chat completions and responses, one shell command each."""

    count = 0
    lock = threading.Lock()
    seen = None

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.reply(json.dumps({"object": "list", "data": [{"id": "scripted"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if Script.seen:
            Script.seen.write(json.dumps(body)[:200_000] + "\n")
        if self.path.endswith("/responses"):
            self.as_responses(body)
        else:
            self.as_chat(body)

    def reply(self, text, kind="application/json"):
        raw = text.encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def stream(self, events, named):
        lines = []
        for event in events:
            if named:
                lines.append(f"event: {event['type']}\n")
            lines.append(f"data: {json.dumps(event)}\n\n")
        if not named:
            lines.append("data: [DONE]\n\n")
        self.reply("".join(lines), "text/event-stream")

    def next_command(self):
        with Script.lock:
            Script.count += 1
            return COMMAND.format(number=Script.count)

    def call(self, tools):
        """(name, arguments) of a shell command, for this agent's tools."""
        command = self.next_command()
        if "bash" in tools:
            return "bash", {"command": command, "description": "change one constant"}
        if "exec_command" in tools:
            return "exec_command", {"cmd": command}
        if "shell_command" in tools:
            return "shell_command", {"command": command}
        return "shell", {"command": ["bash", "-lc", command]}

    def as_chat(self, body):
        tools = [tool["function"]["name"] for tool in body.get("tools") or []]
        done = any(message["role"] == "tool" for message in body["messages"])
        delta = {"role": "assistant", "content": "Done."}
        if tools and not done:
            name, arguments = self.call(tools)
            function = {"name": name, "arguments": json.dumps(arguments)}
            call = {"index": 0, "id": "c1", "type": "function", "function": function}
            delta = {"role": "assistant", "tool_calls": [call]}
        finish = "tool_calls" if "tool_calls" in delta else "stop"
        usage = {"prompt_tokens": 9000, "completion_tokens": 90, "total_tokens": 9090}
        base = {"id": "x", "object": "chat.completion.chunk", "model": "scripted"}
        base["created"] = int(time.time())
        if not body.get("stream"):
            choice = {"index": 0, "message": delta, "finish_reason": finish}
            self.reply(json.dumps(base | {"choices": [choice], "usage": usage}))
            return
        first = {"index": 0, "delta": delta, "finish_reason": None}
        last = {"index": 0, "delta": {}, "finish_reason": finish}
        self.stream(
            [
                base | {"choices": [first]},
                base | {"choices": [last], "usage": usage},
            ],
            named=False,
        )

    def as_responses(self, body):
        tools = [tool.get("name", tool["type"]) for tool in body.get("tools") or []]
        kinds = [item.get("type", "") for item in body["input"]]
        done = any(kind.endswith("_call_output") for kind in kinds)
        item = {
            "type": "message",
            "role": "assistant",
            "id": "m1",
            "content": [{"type": "output_text", "text": "Done.", "annotations": []}],
        }
        if tools and not done:
            name, arguments = self.call(tools)
            item = {
                "type": "function_call",
                "id": "f1",
                "call_id": "c1",
                "name": name,
                "arguments": json.dumps(arguments),
            }
        usage = {
            "input_tokens": 9000,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 90,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 9090,
        }
        whole = {"id": "r1", "object": "response", "output": [item], "usage": usage}
        self.stream(
            [
                {"type": "response.created", "response": {"id": "r1"}},
                {"type": "response.output_item.done", "output_index": 0, "item": item},
                {"type": "response.completed", "response": whole},
            ],
            named=True,
        )


def configure(agent, url):
    """Point an agent at the local server, in its own HOME."""
    if agent == "opencode":
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": url, "apiKey": "none"},
            "models": {"scripted": {"tool_call": True}},
        }
        os.environ["OPENCODE_CONFIG_CONTENT"] = json.dumps(
            {
                "model": "local/scripted",
                "small_model": "local/scripted",
                "provider": {"local": provider},
                "autoupdate": False,
                "share": "disabled",
            }
        )
    elif agent == "codex":
        file = create_agent_home("codex") / ".codex" / "config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            'model = "scripted"\nmodel_provider = "local"\n'
            '[model_providers.local]\nname = "local"\nwire_api = "responses"\n'
            f'base_url = "{url}"\nrequest_max_retries = 1\nstream_max_retries = 1\n'
        )


def run_session(agent, spec, experiments, folder, quick):
    """Run a session with this agent as the proposer `spec`, and describe it."""
    fence = "" if quick else "budget_seconds = 3\nbudget_tolerance_seconds = 2"
    lab = line_lab(folder / agent, fence)
    hours = 0.02 if quick else 0.12
    asked = session.SessionOptions(proposers=(spec,), seed=1, hours=hours)
    begun, ours = time.monotonic(), 0
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        for row in research(opened):
            ours += row.author == spec
            if ours >= experiments:
                opened.workbench.stop.soon = True
    ledger = Ledger(lab.ledger_path)
    rows = [row for row in ledger.load_rows() if row.author == spec]
    askings = ledger.load_proposer_calls()
    return {
        f"{agent}_experiments": len(rows),
        f"{agent}_failed": sum(row.decision == "failed" for row in rows),
        f"{agent}_titled": sum(row.title.startswith("start at") for row in rows),
        f"{agent}_by_search": sum(r.author == "search" for r in ledger.load_rows()),
        f"{agent}_seconds_per_idea": round(
            sum(a.seconds for a in askings) / max(1, len(askings)), 1
        ),
        f"{agent}_tokens_known": sum(a.tokens_in is not None for a in askings),
        f"{agent}_outcomes": sorted(
            {re.sub(r"\d+", "N", asking.outcome)[:160] for asking in askings}
        ),
        f"{agent}_wall_seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", action="append", help="opencode, codex; repeatable")
    parser.add_argument("--experiments", type=int, default=10)
    parser.add_argument(
        "--requests", type=argparse.FileType("w"), help="write every request here"
    )
    parser.add_argument("--quick", action="store_true", help="a stand-in, 1 experiment")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.quick or options.agent):
        parser.error("--agent or --quick")
    found = {"quick": options.quick}
    Script.seen = options.requests
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    # codex makes no aliases of itself below /tmp, and its sandbox needs them.
    with tempfile.TemporaryDirectory(prefix=".agents-", dir=Path.home()) as made:
        os.environ["XDG_STATE_HOME"] = str(Path(made) / "state")
        if options.quick:
            stand_in = Path(made) / "agent.py"
            stand_in.write_text(STAND_IN)
            spec = f'cmd:"{sys.executable} {stand_in} {url}"'
            found |= run_session("stand-in", spec, 1, Path(made), quick=True)
        for agent in () if options.quick else options.agent:
            configure(agent, url)
            place = Path(made)
            more = run_session(agent, agent, options.experiments, place, quick=False)
            print(json.dumps(more), file=sys.stderr, flush=True)
            found |= more
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<28} {value}")


if __name__ == "__main__":
    main()
