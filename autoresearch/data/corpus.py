"""From a text to sealed splits: deduplicate, train a tokenizer, tokenise, pack, seal.

Promises: three splits by document; exact duplicates of held-out documents are taken out
of the training text and counted; the bytes of all tokens sum to the length of the text;
what is sealed under a fingerprint is whole, or not there (written beside and renamed);
another recipe, text or version is another fingerprint.

Not covered: near duplicates, and a text larger than this machine's memory.
"""

import base64
import hashlib
import json
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch import __version__
from autoresearch.atomic_file import write_whole
from autoresearch.data.sources import Document, ShowProgress, Source, registry
from autoresearch.devices.discovery import available_cpu_count, package_version
from autoresearch.errors import LabError

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

    Array = np.ndarray[Any, np.dtype[Any]]

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "holdout")
DOCUMENT_MARK = "<|document|>"  # the last id of the vocabulary; before every document
# Words with their leading space, contractions, short runs of digits, punctuation with
# its line breaks, and white space: in the manner of GPT-4's splits.
PRETOKENIZER_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_SAMPLE_BYTES = 32 << 20
MAX_HELD_OUT_SHARE = 1 / 3  # of what may be held out, for each of two splits
BATCH_DOCUMENTS = 512
DEFAULT_HUB_BYTES = 1 << 30  # of shards, when no maximum is given


@dataclass(frozen=True, slots=True)
class Recipe:
    """What prepare.py asks for."""

    text: str
    vocabulary: int
    validation_bytes: int
    holdout_bytes: int
    maximum_bytes: int | None = None  # None: all of the text
    packages: tuple[str, ...] = ("torch", "numpy", "sympy", "networkx")

    def resolve_source(self) -> Source:
        """Where the text comes from."""
        return registry.load_source(
            self.text,
            self.packages,
            cache_root(),
            self.maximum_bytes or DEFAULT_HUB_BYTES,
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """A prepared text."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def path(self, split: str) -> Path:
        """The packed tokens of a split."""
        return self.folder / f"{split}.u16"

    def tokens(self, split: str) -> "Array":
        """The packed tokens of a split: uint16 (N,), read-only."""
        import numpy as np

        return np.memmap(self.path(split), dtype="<u2", mode="r")

    def token_bytes(self) -> "Array":
        """Raw bytes that each id stands for, int64 (V,); the document mark has none."""
        import numpy as np

        ranks = read_ranks(self.folder / "tokenizer.txt")
        return np.array([*(len(token) for token in ranks), 0], dtype=np.int64)

    def load_encoding(self) -> "tiktoken.Encoding":
        """The tokenizer."""
        return encoding_from_ranks(read_ranks(self.folder / "tokenizer.txt"))

    def decode_split(self, split: str) -> bytes:
        """The text of a split, without document marks."""
        ranks = [*read_ranks(self.folder / "tokenizer.txt"), b""]
        return b"".join(ranks[token] for token in self.tokens(split))

    def verify(self) -> None:
        """Hash every file that was touched since the last look; LabError names one
        that changed. A file's inode change time cannot be set back by its owner.
        """
        for name, facts in self.manifest["files"].items():
            path = self.folder / name
            try:
                seen = stat_signature(path)
                if VERIFIED_FILES.get(path) == (seen, facts["sha256"]):
                    continue
                if hash_file(path) != facts["sha256"] or stat_signature(path) != seen:
                    raise damaged_file_error(path)
            except FileNotFoundError:
                raise damaged_file_error(path) from None
            VERIFIED_FILES[path] = (seen, facts["sha256"])


# What this process has hashed: (look at the file, its hash).
VERIFIED_FILES: dict[Path, tuple[tuple[int, ...], str]] = {}


def stat_signature(path: Path) -> tuple[int, ...]:
    """What changes when a file's bytes do."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def cache_root() -> Path:
    """Where sealed texts and downloads lie, shared by all labs of this user."""
    chosen = os.environ.get("AUTORESEARCH_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "autoresearch"


def prepare(recipe: Recipe, show: ShowProgress) -> Sealed:
    """Make and seal what the recipe asks for; nothing where it is there already."""
    if found := find(recipe):
        return found
    require_packages()
    source = recipe.resolve_source()
    source.fetch(show)
    show("read", 0, 1)
    description = source.describe()
    fingerprint = compute_fingerprint(recipe, description)
    folder = cache_root() / fingerprint
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            build_corpus(recipe, source, description, beside, show)
            seal_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    write_whole(
        index_path(recipe), json.dumps(build_index_entry(recipe, source, fingerprint))
    )
    sealed = open_sealed(folder)
    sealed.verify()
    return sealed


def find(recipe: Recipe) -> Sealed | None:
    """The sealed text of a recipe, if its text has not changed since; else None."""
    path = index_path(recipe)
    if not path.exists():
        return None
    said = json.loads(path.read_text())
    if said != json.loads(
        json.dumps(
            build_index_entry(recipe, recipe.resolve_source(), said["fingerprint"])
        )
    ):
        return None
    folder = cache_root() / said["fingerprint"]
    return open_sealed(folder) if (folder / "manifest.json").exists() else None


def require(recipe: Recipe) -> Sealed:
    """The sealed text of a recipe, or LabError saying how to make it."""
    if found := find(recipe):
        return found
    raise LabError(
        f"the text {recipe.text!r} is not prepared on this machine (or it changed "
        "since). Next: autoresearch prepare"
    )


def open_sealed(folder: Path) -> Sealed:
    """A sealed folder, after a look at its files' sizes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise damaged_file_error(path)
    return Sealed(folder, manifest)


def damaged_file_error(path: Path) -> LabError:
    return LabError(
        f"{path} is truncated or changed. "
        f"Next: rm -r {path.parent}, then autoresearch prepare"
    )


# -- fingerprints ----------------------------------------------------------------------


def collect_versions() -> dict[str, str]:
    """What else decides how a text comes out."""
    packages = {name: package_version(name) for name in ("rustbpe", "tiktoken")}
    python = platform.python_version()
    return {
        "format": str(FORMAT_VERSION),
        "tool": __version__,
        **packages,
        "python": python,
    }


def compute_fingerprint(recipe: Recipe, description: Mapping[str, object]) -> str:
    """A short name for recipe, text and versions; where the text lies is no part."""
    asked = {k: v for k, v in asdict(recipe).items() if k not in ("text", "packages")}
    return compute_digest([asked, description, collect_versions()])


def index_path(recipe: Recipe) -> Path:
    """Where a recipe's fingerprint is remembered."""
    folder = cache_root() / "index"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{compute_digest(asdict(recipe))}.json"


def build_index_entry(
    recipe: Recipe, source: Source, fingerprint: str
) -> dict[str, object]:
    """What must be unchanged for a fingerprint to hold without reading the text."""
    facts = {"source": source.collect_quick_facts(), "versions": collect_versions()}
    return {"fingerprint": fingerprint, "facts": compute_digest(facts)}


def compute_digest(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, default=list).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Hash of a file; "" where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_packages() -> None:
    """LabError when the training extra is not installed."""
    missing = [
        n for n in ("numpy", "rustbpe", "tiktoken") if package_version(n) == "absent"
    ]
    if missing:
        raise LabError(
            f"preparing text needs {', '.join(missing)}. "
            "Next: pip install -e '.[train]'"
        )


# -- making ----------------------------------------------------------------------------


def build_corpus(
    recipe: Recipe,
    source: Source,
    description: Mapping[str, object],
    folder: Path,
    show: ShowProgress,
) -> None:
    """Write everything about a text into an empty folder."""
    documents = list(source.iter_documents())
    show("read", 1, 1)
    splits, removed = split_documents(documents, recipe)
    del documents
    encoding, ranks = train_tokenizer(splits["train"], recipe.vocabulary, show)
    write_ranks(folder / "tokenizer.txt", ranks)
    lengths = [*(len(token) for token in ranks), 0]
    counts = {}
    for name in SPLITS:
        counts[name] = pack_split(splits[name], encoding, lengths, folder, name, show)
    files = sorted(path for path in folder.iterdir())
    manifest = {
        "recipe": asdict(recipe),
        "source": description,
        "versions": collect_versions(),
        "duplicates_removed": removed,
        "splits": counts,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in files
        },
    }
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def seal_folder(beside: Path, folder: Path) -> None:
    """Give a finished folder its name; somebody else's equal one will do as well."""
    for path in beside.iterdir():
        path.chmod(0o444)
    beside.chmod(0o755)
    if folder.exists():  # made by a run that was killed before it had a manifest
        shutil.rmtree(folder)
    try:
        beside.rename(folder)
    except OSError:
        if not (folder / "manifest.json").exists():
            raise


def split_documents(
    documents: Sequence[Document], recipe: Recipe
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Documents -> texts by split, and how many duplicates were removed.

    Held-out documents are drawn by a hash of their names, so that another order or
    a few more files move few of them.
    """
    shuffled = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    offered = sum(len(d.text.encode()) for d in shuffled if d.may_hold_out)
    wanted = {"validation": recipe.validation_bytes, "holdout": recipe.holdout_bytes}
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    removed = {"within held-out": 0, "training text that is held out": 0}
    seen: set[bytes] = set()
    rest: list[Document] = []
    waiting = [d for d in shuffled if d.may_hold_out]
    for name, most in wanted.items():
        left = min(most, offered * MAX_HELD_OUT_SHARE)
        while left > 0 and waiting:
            document = waiting.pop()
            key = document_key(document.text)
            if key in seen:
                removed["within held-out"] += 1
                continue
            seen.add(key)
            splits[name].append(document.text)
            left -= len(document.text.encode())
    rest = waiting + [d for d in shuffled if not d.may_hold_out]
    rest.sort(key=lambda d: hashlib.sha256(d.name.encode()).digest())
    most_bytes = recipe.maximum_bytes or 1 << 62
    for document in rest:
        if document_key(document.text) in seen:
            removed["training text that is held out"] += 1
        elif most_bytes > 0:
            splits["train"].append(document.text)
            most_bytes -= len(document.text.encode())
    for name in SPLITS:
        if not splits[name]:
            raise LabError(
                f"the text {recipe.text!r} has too few documents for a {name} split. "
                "Next: give it more text, or a smaller VALIDATION_BYTES in prepare.py"
            )
    return splits, removed


def document_key(text: str) -> bytes:
    """Equal for texts that differ only in the white space around them."""
    return hashlib.sha256(text.strip().encode()).digest()


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, show: ShowProgress
) -> tuple["tiktoken.Encoding", list[bytes]]:
    """A byte-pair encoding of `vocabulary` ids, the document mark among them."""
    import rustbpe

    show(f"tokenizer of {vocabulary}", 0, 1)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        sample_texts(texts), vocabulary - 1, pattern=PRETOKENIZER_PATTERN
    )
    pairs = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    ranks = [bytes(token) for token, _ in pairs]
    if len(ranks) != vocabulary - 1:
        raise LabError(
            f"this text has only {len(ranks)} tokens for a vocabulary of {vocabulary}. "
            "Next: a smaller VOCABULARY in prepare.py, or more text"
        )
    show(f"tokenizer of {vocabulary}", 1, 1)
    return encoding_from_ranks(ranks), ranks


def sample_texts(texts: Sequence[str]) -> Iterable[str]:
    """As much of the training text as a tokenizer needs, from all over it."""
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    left = TOKENIZER_SAMPLE_BYTES
    for index in order:
        if left <= 0:
            return
        left -= len(texts[index])
        yield texts[index]


def encoding_from_ranks(ranks: Sequence[bytes]) -> "tiktoken.Encoding":
    """tiktoken over our own ranks; the document mark comes last."""
    import tiktoken

    return tiktoken.Encoding(
        "autoresearch",
        pat_str=PRETOKENIZER_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={DOCUMENT_MARK: len(ranks)},
    )


def write_ranks(path: Path, ranks: Sequence[bytes]) -> None:
    """One token a line, base64, in order of rank."""
    lines = (base64.b64encode(token).decode() for token in ranks)
    path.write_text("\n".join(lines) + "\n")


def read_ranks(path: Path) -> list[bytes]:
    """The inverse of `write_ranks`."""
    return [base64.b64decode(line) for line in path.read_text().split()]


def pack_split(
    texts: Sequence[str],
    encoding: "tiktoken.Encoding",
    lengths: Sequence[int],
    folder: Path,
    name: str,
    show: ShowProgress,
) -> dict[str, int]:
    """Tokenise a split into one uint16 file, a mark before each document."""
    import numpy as np

    width = np.array(lengths, dtype=np.int64)
    mark = len(lengths) - 1
    tokens = counted = size = 0
    with (folder / f"{name}.u16").open("wb") as file:
        for at in range(0, len(texts), BATCH_DOCUMENTS):
            part = list(texts[at : at + BATCH_DOCUMENTS])
            for ids in encoding.encode_ordinary_batch(
                part, num_threads=available_cpu_count()
            ):
                packed = np.array([mark, *ids], dtype="<u2")
                counted += int(width[packed].sum())
                tokens += len(packed)
                file.write(packed.tobytes())
            size += sum(len(text.encode()) for text in part)
            show(f"tokenise {name}", min(at + BATCH_DOCUMENTS, len(texts)), len(texts))
        file.flush()
        os.fsync(file.fileno())
    assert counted == size, f"{name}: tokens stand for {counted} of {size} bytes"
    return {"documents": len(texts), "tokens": tokens, "bytes": size}
