"""Text files under a path: .parquet (column `text`), .jsonl (field `text`), .txt, .md.

A text file is one document; it is cut at `<|endoftext|>` marks, or at blank lines if it
is large. Names are relative to the path, so the same files elsewhere are the same text.
Not covered: other columns, compressed files, other encodings than UTF-8.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoresearch.data.sources import Document, ShowProgress
from autoresearch.errors import LabError

TEXT_SUFFIXES = (".parquet", ".jsonl", ".txt", ".md")
LARGEST_LINE_BYTES = 64 << 20
MAX_DOCUMENT_CHARACTERS = 1 << 20
PIECE_CHARACTERS = 4000
MARK = "<|endoftext|>"


class FileSource:
    """The texts of a file or a folder."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise LabError(
                f"the text {path} does not exist. Next: correct TEXT in prepare.py, or "
                "autoresearch new LAB --text PATH"
            )
        self._root = path if path.is_dir() else path.parent
        paths = sorted(path.rglob("*")) if path.is_dir() else [path]
        self._paths = [p for p in paths if p.suffix in TEXT_SUFFIXES and p.is_file()]
        if not self._paths:
            raise LabError(
                f"{path} contains no text: no {', '.join(TEXT_SUFFIXES)} file"
            )

    def collect_quick_facts(self) -> Mapping[str, object]:
        """Return names, sizes and times of modification."""
        stats = [(self._relative_name(path), path.stat()) for path in self._paths]
        return {"files": [[n, s.st_size, s.st_mtime_ns] for n, s in stats]}

    def fetch(self, show: ShowProgress) -> None:
        """Do nothing: the files are local."""

    def describe(self) -> Mapping[str, object]:
        """Return names, sizes and sha256."""
        return {
            "text": "files",
            "files": [
                [self._relative_name(path), path.stat().st_size, sha256_file(path)]
                for path in self._paths
            ],
        }

    def iter_documents(self) -> Iterator[Document]:
        """Yield every text."""
        for path in self._paths:
            yield from iter_file_documents(path, self._relative_name(path))

    def _relative_name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def iter_file_documents(path: Path, name: str) -> Iterator[Document]:
    """Yield the documents of one file."""
    if path.suffix == ".parquet":
        texts = iter_parquet_texts(path)
    elif path.suffix == ".jsonl":
        texts = iter_jsonl_texts(path)
    else:
        texts = iter_plain_texts(path)
    for number, text in enumerate(texts):
        if text.strip():
            yield Document(f"{name}:{number}", text)


def iter_parquet_texts(path: Path) -> Iterator[str]:
    """Yield column `text`, batch by batch."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LabError(
            f"{path} needs pyarrow. Next: pip install -e '.[train]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names[:10])
                raise LabError(f"{path} has no column 'text'; it has: {columns}")
            for batch in file.iter_batches(1024, columns=["text"]):
                for value in batch.column(0):
                    yield str(value.as_py() or "")
    except (pyarrow.ArrowException, OSError) as error:
        raise LabError(f"{path} is not a complete parquet file ({error})") from None


def iter_jsonl_texts(path: Path) -> Iterator[str]:
    """Yield field `text` of every line."""
    with path.open("rb") as file:
        for number, line in enumerate(
            iter(lambda: file.readline(LARGEST_LINE_BYTES), b"")
        ):
            try:
                text = json.loads(line)["text"]
            except (ValueError, RecursionError, LookupError, TypeError):
                raise LabError(
                    f"{path} line {number + 1} is not a JSON object with a field 'text'"
                ) from None
            yield str(text)


def iter_plain_texts(path: Path) -> Iterator[str]:
    """Yield a text file as one document, or its parts."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise LabError(f"{path} is not UTF-8 text. Next: convert or move it") from None
    if MARK in text:
        yield from text.split(MARK)
    elif len(text) <= MAX_DOCUMENT_CHARACTERS:
        yield text
    else:
        yield from split_at_blank_lines(text)


def split_at_blank_lines(text: str) -> Iterator[str]:
    """Cut a long text at blank lines into parts of a few thousand characters."""
    parts: list[str] = []
    size = 0
    for part in text.split("\n\n"):
        parts.append(part)
        size += len(part) + 2
        if size > PIECE_CHARACTERS:
            yield "\n\n".join(parts)
            parts, size = [], 0
    if parts:
        yield "\n\n".join(parts)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
