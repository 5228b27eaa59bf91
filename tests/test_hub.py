"""Downloads against a local server that cuts, lies and refuses."""

import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow
import pyarrow.parquet
import pytest

from autoresearch.data.sources import hub
from autoresearch.errors import LabError

REVISION = "a" * 40


def shard(number):
    """A parquet file of a few hundred kB that does not compress."""
    texts = [
        hashlib.sha256(f"{number} {n}".encode()).hexdigest() * 40 for n in range(200)
    ]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), out, compression="none")
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """A hub with two shards, and a list of mischief to do, one per request for a file."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.shards = {f"data/train-{n}.parquet": shard(n) for n in range(2)}
        self.mischief = []
        self.asked = []
        self.slow = 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        server = self.server
        if "/revision/" in self.path:
            return self.answer(json.dumps({"sha": REVISION}).encode())
        if "/tree/" in self.path:
            tree = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(body),
                    "lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)},
                }
                for path, body in server.shards.items()
            ]
            tree += [
                {
                    "type": "file",
                    "path": "../../etc/x.parquet",
                    "size": 1,
                    "lfs": {"oid": "0" * 64},
                }
            ]
            return self.answer(json.dumps(tree).encode())
        path = self.path.partition(f"/resolve/{REVISION}/")[2]
        body = server.shards[path]
        server.asked.append((path, self.headers.get("Range")))
        return self.file(body, server.mischief.pop(0) if server.mischief else None)

    def file(self, body, mischief):
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if mischief in (429, 503):
            self.send_response(mischief)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if mischief == "ignores range":
            return self.answer(body)
        if mischief == "wrong bytes":
            return self.answer(bytes(len(body) - start), 206)
        if mischief == "too long":
            return self.answer(body[start:] + b"more", 206)
        part = body[start:]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if mischief == "cut":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return None
        for at in range(0, len(part), 20_000):
            self.wfile.write(part[at : at + 20_000])
            time.sleep(self.server.slow)
        return None

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.shutdown()
    server.server_close()


def source(tmp_path):
    found = hub.HubSource("tinystories", tmp_path, 1 << 30)
    found._pause = 0.001
    return found


def quiet(stage, done, total):
    pass


def whole(tmp_path, server):
    """Whether every shard is there, byte for byte, and nothing else but the listing."""
    files = {p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    return files == set(server.shards.values()) and not list(tmp_path.rglob("*.part"))


def test_shards_are_downloaded_and_read(tmp_path, server):
    seen = []
    found = source(tmp_path)

    found.fetch(lambda stage, done, total: seen.append((done, total)))

    assert whole(tmp_path, server)
    assert seen[-1][0] == seen[-1][1] == sum(map(len, server.shards.values()))
    assert len(list(found.iter_documents())) == 400
    assert found.describe()["revision"] == REVISION


def test_a_second_fetch_asks_for_nothing(tmp_path, server):
    source(tmp_path).fetch(quiet)
    server.asked.clear()

    source(tmp_path).fetch(quiet)

    assert server.asked == []


@pytest.mark.parametrize(
    "mischief",
    [
        ["cut", "cut", "cut"],
        [429, 503, 429],
        ["wrong bytes"],
        ["too long"],
        ["cut", "ignores range"],
        ["cut", "cut", "wrong bytes", 503, "cut"],
    ],
    ids=str,
)
def test_a_bad_server_is_outlasted(tmp_path, server, mischief):
    server.mischief = mischief

    source(tmp_path).fetch(quiet)

    assert whole(tmp_path, server)


def test_a_cut_download_goes_on_where_it_stood(tmp_path, server):
    server.mischief = ["cut"]

    source(tmp_path).fetch(quiet)

    starts = [int(r.removeprefix("bytes=").rstrip("-")) for _, r in server.asked]
    assert len(starts) == 3
    assert max(starts) > 100_000


def test_a_server_that_always_lies_ends_in_one_sentence(tmp_path, server):
    server.mischief = ["wrong bytes"] * 100

    with pytest.raises(LabError, match="not the file in the hub's listing"):
        source(tmp_path).fetch(quiet)

    assert not list(tmp_path.rglob("*.parquet"))


def test_a_data_set_that_is_not_there_ends_at_once(tmp_path, monkeypatch, server):
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/nowhere")
    server.shards = {}

    with pytest.raises(LabError, match="lists no parquet files"):
        source(tmp_path).fetch(quiet)


def test_no_network_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = source(tmp_path)

    with pytest.raises(LabError, match="set HF_ENDPOINT"):
        found.fetch(quiet)


def test_a_killed_download_goes_on_in_the_next_process(tmp_path, server):
    server.slow = 0.05
    words = (
        "from pathlib import Path; from autoresearch.data.sources import hub;"
        f"hub.HubSource('tinystories', Path({str(tmp_path)!r}), 1 << 30)"
        ".fetch(lambda *a: None)"
    )
    process = subprocess.Popen([sys.executable, "-c", words], env=dict(os.environ))
    while sum(p.stat().st_size for p in tmp_path.rglob("*.part")) < 100_000:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.slow = 0.0
    server.asked.clear()

    source(tmp_path).fetch(quiet)

    assert whole(tmp_path, server)
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for _, r in server.asked]
    assert max(starts) > 20_000
