"""A local OpenAI-compatible server that answers as real ones do on a bad night.

Each POST takes the next of its `plan`; the last is repeated. A step is one of the words
below, or a function of the prompt that returns the text of the reply.
"""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_SECONDS = 30.0


def reply(title, search, replace, reason="because"):
    """A reply in the form that the context asks for."""
    return (
        f"TITLE: {title}\nREASON: {reason}\nEXPECTED: -0.01\n"
        f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"
    )


class ModelServer:
    """Runs in a thread; `prompts` is what it was told, `url` where it is."""

    def __init__(self, *plan):
        self.plan = list(plan)
        self.prompts = []
        self.headers = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                outer.headers.append(dict(self.headers))
                outer.prompts.append(body["messages"][-1]["content"])
                at = min(len(outer.prompts), len(outer.plan)) - 1
                # The other side may have given up, as it should.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self, body, outer.plan[at])

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spec(self):
        return f"ollama:small:1b@{self.url}"

    def answer(self, handler, body, step):
        if step == "429":
            self.send(handler, 429, {"error": "slow down"}, {"Retry-After": "0"})
        elif step == "429 long":
            self.send(handler, 429, {"error": "usage limit"}, {"Retry-After": "4000"})
        elif step == "429 forever":
            self.send(handler, 429, {"error": "no"}, {"Retry-After": "9" * 15})
        elif step == "503":
            self.send(handler, 503, {"error": "overloaded"})
        elif step == "401":
            self.send(handler, 401, {"error": "bad key"})
        elif step == "hang":
            self.closing.wait(HANG_SECONDS)
        elif step == "half":
            whole = json.dumps(self.completion(body, "TITLE: x")).encode()
            handler.send_response(200)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[: len(whole) // 2])
            handler.close_connection = True
        elif step == "garbage":
            self.send(handler, 200, "<html>nginx \x00\x1b[2J")
        elif step == "not a completion":
            self.send(handler, 200, {"choices": [{"message": 3}], "usage": "x"})
        elif step == "empty":
            self.send(handler, 200, {"choices": []})
        elif step == "5 MB":
            self.send(handler, 200, self.completion(body, "x" * 5_000_000))
        else:
            text = step(body["messages"][0]["content"]) if callable(step) else step
            self.send(handler, 200, self.completion(body, text))

    def completion(self, body, text):
        prompt = sum(len(str(m["content"])) for m in body["messages"]) // 3
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": len(text) // 3,
                "total_tokens": prompt + len(text) // 3,
            },
        }

    def send(self, handler, status, body, headers=None):
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)
