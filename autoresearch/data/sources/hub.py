"""`fineweb-edu`, `climbmix`, `tinystories`: parquet shards of the Hugging Face hub.

Promises: a shard counts if its size and sha256 are those that the hub lists; a download
that was interrupted or killed resumes; no partial file has the final name. The endpoint
is HF_ENDPOINT if set (a mirror, or the tests' local server).

Not covered: private data sets (no login is sent), and wrong hashes in the listing.
"""

import http.client
import json
import os
import random
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from autoresearch.atomic_file import write_whole
from autoresearch.data.sources import Document, ShowProgress
from autoresearch.data.sources.files import iter_file_documents, sha256_file
from autoresearch.errors import LabError

DEFAULT_ENDPOINT = "https://huggingface.co"
DATASETS = {  # name -> (repository, folder of its shards)
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample/10BT"),
    "climbmix": ("karpathy/climbmix-400b-shuffle", ""),
    "tinystories": ("roneneldan/TinyStories", "data"),
}
PARALLEL_DOWNLOADS = 4
MAX_TRIES = 8
TIMEOUT_SECONDS = 60.0  # for a server that sends nothing
MAX_BACKOFF_SECONDS = 60.0
LARGEST_LISTING_BYTES = 32 << 20
LARGEST_SHARD_BYTES = 16 << 30
CHUNK_BYTES = 1 << 20
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*\.parquet")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a data set, from the hub's listing."""

    path: str
    size_bytes: int
    sha256: str


class HubSource:
    """The first shards of a data set, at one revision."""

    def __init__(self, name: str, folder: Path, most_bytes: int) -> None:
        self._name = name
        self._repository, self._under = DATASETS[name]
        self._most_bytes = most_bytes
        self._endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
        self._folder = folder / self._repository.replace("/", "--")
        self._pause = 1.0  # seconds before the second try; doubles

    def collect_quick_facts(self) -> Mapping[str, object]:
        """Return the fetched listing: the shards of a listing never change."""
        path = self._listing_path()
        return {"listing": path.read_text() if path.exists() else None}

    def describe(self) -> Mapping[str, object]:
        """Return revision and shards."""
        revision, shards = self._read_listing()
        return {
            "text": self._name,
            "repository": self._repository,
            "revision": revision,
            "shards": [[s.path, s.size_bytes, s.sha256] for s in shards],
        }

    def iter_documents(self) -> Iterator[Document]:
        """Yield every text of every shard."""
        _, shards = self._read_listing()
        for shard in shards:
            yield from iter_file_documents(self._shard_path(shard), shard.path)

    # -- fetching ----------------------------------------------------------------------

    def fetch(self, show: ShowProgress) -> None:
        """Download the missing shards, several in parallel."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._listing_path().exists():
            self._fetch_listing()
        revision, shards = self._read_listing()
        missing = [shard for shard in shards if not self._shard_path(shard).exists()]
        require_disk_space(self._folder, sum(shard.size_bytes for shard in missing))
        total = sum(shard.size_bytes for shard in shards)
        done = ByteCounter(total - sum(shard.size_bytes for shard in missing))
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as threads:
            futures = [
                threads.submit(self._download_shard, s, revision, done) for s in missing
            ]
            while not all(future.done() for future in futures):
                show(f"download {self._name}", min(done.count, total - 1), total)
                time.sleep(0.1)
            for future in futures:
                future.result()
        show(f"download {self._name}", total, total)

    def _fetch_listing(self) -> None:
        """Fetch the revision and the list of shards, and store them."""
        base = f"{self._endpoint}/api/datasets/{self._repository}"
        revision = json.loads(self._get_with_retries(f"{base}/revision/main")).get(
            "sha"
        )
        if not isinstance(revision, str) or not re.fullmatch("[0-9a-f]{40}", revision):
            raise LabError(f"{base} names no revision. Next: check HF_ENDPOINT")
        tree = json.loads(
            self._get_with_retries(f"{base}/tree/{revision}/{self._under}".rstrip("/"))
        )
        shards = select_shards(parse_shards(tree), self._most_bytes)
        if not shards:
            raise LabError(f"{base} lists no parquet files. Next: check HF_ENDPOINT")
        rows = [[s.path, s.size_bytes, s.sha256] for s in shards]
        write_whole(
            self._listing_path(), json.dumps({"revision": revision, "shards": rows})
        )

    def _get_with_retries(self, url: str) -> bytes:
        """Get a small answer, with retries."""
        for left in reversed(range(MAX_TRIES)):
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                    return bytes(answer.read(LARGEST_LISTING_BYTES))
            except (OSError, http.client.HTTPException) as error:
                self._back_off_or_raise(error, url, left)
        raise AssertionError("unreachable")

    def _download_shard(self, shard: Shard, revision: str, done: "ByteCounter") -> None:
        """Download one shard, resuming where an earlier try ended."""
        path = urllib.parse.quote(shard.path)
        url = f"{self._endpoint}/datasets/{self._repository}/resolve/{revision}/{path}"
        part = self._shard_path(shard).with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        counted = part.stat().st_size if part.exists() else 0
        done.add(counted)
        for left in reversed(range(MAX_TRIES)):
            before = part.stat().st_size if part.exists() else 0
            try:
                resume_download(url, part, shard.size_bytes, done)
                self._verify_shard(shard, part, done)
            except (OSError, http.client.HTTPException, ShardMismatch) as error:
                grown = part.exists() and part.stat().st_size > before
                self._back_off_or_raise(error, url, max(left, 1) if grown else left)
                continue
            part.replace(self._shard_path(shard))
            return
        raise LabError(f"{url} could not be downloaded. Next: autoresearch prepare")

    def _verify_shard(self, shard: Shard, part: Path, done: "ByteCounter") -> None:
        """Compare a finished file with the listing; delete it if it differs."""
        size_bytes = part.stat().st_size
        if size_bytes < shard.size_bytes:
            raise ShardMismatch(
                f"it ended after {size_bytes} of {shard.size_bytes} bytes"
            )
        if size_bytes > shard.size_bytes or sha256_file(part) != shard.sha256:
            part.unlink()
            done.add(-size_bytes)
            raise ShardMismatch(
                "it is not the file in the hub's listing (size or sha256)"
            )

    def _back_off_or_raise(self, error: Exception, url: str, left: int) -> None:
        """Wait before the next try, or raise LabError if there is none left."""
        final = isinstance(error, urllib.error.HTTPError) and error.code not in (
            408, 425, 429, 500, 502, 503, 504,
        )  # fmt: skip
        if final or left == 0:
            raise LabError(
                f"{url}: {error}. Next: autoresearch prepare   (it resumes); behind a "
                "mirror, set HF_ENDPOINT"
            ) from None
        time.sleep(compute_backoff_seconds(error, MAX_TRIES - left, self._pause))

    # -- places ------------------------------------------------------------------------

    def _listing_path(self) -> Path:
        return self._folder / f"listing-{self._most_bytes}.json"

    def _read_listing(self) -> tuple[str, list[Shard]]:
        if not self._listing_path().exists():
            raise LabError(
                f"{self._name} was never fetched. Next: autoresearch prepare"
            )
        listing = json.loads(self._listing_path().read_text())
        return listing["revision"], [Shard(*shard) for shard in listing["shards"]]

    def _shard_path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256[:16]}.parquet"


class ShardMismatch(Exception):
    """A downloaded file differs from the listing."""


class ByteCounter:
    """Counts received bytes over all threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.count += count


def parse_shards(tree: object) -> list[Shard]:
    """Parse the parquet files of a listing, which is not trusted."""
    shards = []
    for entry in tree if isinstance(tree, list) else ():
        match entry:
            case {"path": str(path), "size": int(size), "lfs": {"oid": str(oid)}}:
                is_safe = SHARD_NAME.fullmatch(path) and ".." not in path
                fits = 0 < size < LARGEST_SHARD_BYTES
                if is_safe and fits and re.fullmatch("[0-9a-f]{64}", oid):
                    shards.append(Shard(path, size, oid))
    return sorted(shards, key=lambda shard: shard.path)


def select_shards(shards: Sequence[Shard], most_bytes: int) -> list[Shard]:
    """Select the first shards that reach this size; their text is larger."""
    selected: list[Shard] = []
    for shard in shards:
        if sum(s.size_bytes for s in selected) >= most_bytes:
            break
        selected.append(shard)
    return selected


def resume_download(url: str, part: Path, size_bytes: int, done: ByteCounter) -> None:
    """Append the rest of a file; start over if the server ignores Range."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size_bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        if have and answer.status != 206:
            done.add(-have)
            have = 0
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read1(CHUNK_BYTES):
                file.write(chunk)
                done.add(len(chunk))
                have += len(chunk)
                if have > size_bytes:
                    return  # too long: `_verify_shard` reports it


def compute_backoff_seconds(error: Exception, tried: int, unit: float) -> float:
    """Return the seconds to wait: Retry-After, else exponential with jitter."""
    if isinstance(error, urllib.error.HTTPError):
        asked = error.headers.get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), MAX_BACKOFF_SECONDS)
    longest = min(unit * 2 ** (tried - 1), MAX_BACKOFF_SECONDS)
    return random.uniform(longest / 2, longest)


def require_disk_space(folder: Path, size_bytes: int) -> None:
    """Raise LabError if the disk has no room for a download."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes * 1.1:
        raise LabError(
            f"{folder}: {size_bytes / 1e9:.1f} GB are to be downloaded, "
            f"{free / 1e9:.1f} GB are free. Next: make space, or set AUTORESEARCH_CACHE"
        )
