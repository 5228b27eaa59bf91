"""From a text to sealed splits: deduplicate, train a tokenizer, tokenise, pack, seal.

Promises: three splits by document; exact duplicates of held-out documents are removed
from the training text and counted; the bytes of all tokens sum to the length of the
text; a folder under a fingerprint is complete or absent (written under another name and
renamed); another recipe, text or version has another fingerprint.

Not covered: near duplicates, and texts larger than this machine's memory.
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
# its line breaks, and white space: similar to GPT-4's pattern.
PRETOKENIZER_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_SAMPLE_BYTES = 32 << 20
MAX_HELD_OUT_SHARE = 1 / 3  # of the text that may be held out, for each split
BATCH_DOCUMENTS = 512
DEFAULT_HUB_BYTES = 1 << 30  # of shards, if no maximum is given


@dataclass(frozen=True, slots=True)
class Recipe:
    """The corpus that prepare.py requests."""

    text: str
    vocabulary: int
    validation_bytes: int
    holdout_bytes: int
    maximum_bytes: int | None = None  # None: all of the text
    packages: tuple[str, ...] = ("torch", "numpy", "sympy", "networkx")

    def resolve_source(self) -> Source:
        """Return the source of the text."""
        return registry.load_source(
            self.text,
            self.packages,
            cache_root(),
            self.maximum_bytes or DEFAULT_HUB_BYTES,
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed corpus."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def path(self, split: str) -> Path:
        """Return the path of a split's packed tokens."""
        return self.folder / f"{split}.u16"

    def tokens(self, split: str) -> "Array":
        """Map the packed tokens of a split: uint16 (N,), read-only."""
        import numpy as np

        return np.memmap(self.path(split), dtype="<u2", mode="r")

    def token_bytes(self) -> "Array":
        """Return the raw bytes that each id stands for, int64 (V,); 0 for the mark."""
        import numpy as np

        ranks = read_ranks(self.folder / "tokenizer.txt")
        return np.array([*(len(token) for token in ranks), 0], dtype=np.int64)

    def load_encoding(self) -> "tiktoken.Encoding":
        """Load the tokenizer."""
        return encoding_from_ranks(read_ranks(self.folder / "tokenizer.txt"))

    def decode_split(self, split: str) -> bytes:
        """Decode the text of a split, without document marks."""
        ranks = [*read_ranks(self.folder / "tokenizer.txt"), b""]
        return b"".join(ranks[token] for token in self.tokens(split))

    def verify(self) -> None:
        """Hash every file that was touched since the last check.

        Raises LabError naming a file that changed. A file's inode change time cannot be
        set back by its owner.
        """
        for name, facts in self.manifest["files"].items():
            path = self.folder / name
            try:
                signature = stat_signature(path)
                if VERIFIED_FILES.get(path) == (signature, facts["sha256"]):
                    continue
                same = hash_file(path) == facts["sha256"]
                if not same or stat_signature(path) != signature:
                    raise damaged_file_error(path)
            except FileNotFoundError:
                raise damaged_file_error(path) from None
            VERIFIED_FILES[path] = (signature, facts["sha256"])


# What this process has hashed: path -> (stat signature, hash).
VERIFIED_FILES: dict[Path, tuple[tuple[int, ...], str]] = {}


def stat_signature(path: Path) -> tuple[int, ...]:
    """Return the facts that change when a file's bytes change."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def cache_root() -> Path:
    """Return the folder of sealed texts and downloads, shared by all labs of a user."""
    folder = os.environ.get("AUTORESEARCH_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "autoresearch"


def prepare(recipe: Recipe, show: ShowProgress) -> Sealed:
    """Build and seal the corpus of a recipe, unless it exists. Raises LabError."""
    if existing := find(recipe):
        return existing
    require_packages()
    source = recipe.resolve_source()
    source.fetch(show)
    show("read", 0, 1)
    description = source.describe()
    fingerprint = compute_fingerprint(recipe, description)
    folder = cache_root() / fingerprint
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            build_corpus(recipe, source, description, temporary, show)
            seal_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    write_whole(
        index_path(recipe), json.dumps(build_index_entry(recipe, source, fingerprint))
    )
    sealed = open_sealed(folder)
    sealed.verify()
    return sealed


def find(recipe: Recipe) -> Sealed | None:
    """Find the sealed corpus of a recipe; None: there is none, or the text changed."""
    path = index_path(recipe)
    if not path.exists():
        return None
    entry = json.loads(path.read_text())
    source, fingerprint = recipe.resolve_source(), entry["fingerprint"]
    current = build_index_entry(recipe, source, fingerprint)
    if entry != json.loads(json.dumps(current)):
        return None
    folder = cache_root() / fingerprint
    return open_sealed(folder) if (folder / "manifest.json").exists() else None


def require(recipe: Recipe) -> Sealed:
    """Return the sealed corpus of a recipe; LabError says how to build it."""
    if existing := find(recipe):
        return existing
    raise LabError(
        f"the text {recipe.text!r} is not prepared on this machine (or it changed "
        "since). Next: autoresearch prepare"
    )


def open_sealed(folder: Path) -> Sealed:
    """Open a sealed folder after checking its files' sizes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise damaged_file_error(path)
    return Sealed(folder, manifest)


def damaged_file_error(path: Path) -> LabError:
    """Make the error for a file that is truncated or changed."""
    return LabError(
        f"{path} is truncated or changed. "
        f"Next: rm -r {path.parent}, then autoresearch prepare"
    )


# -- fingerprints ----------------------------------------------------------------------


def collect_versions() -> dict[str, str]:
    """Collect the versions that affect how a text is packed."""
    packages = {name: package_version(name) for name in ("rustbpe", "tiktoken")}
    python = platform.python_version()
    return {
        "format": str(FORMAT_VERSION),
        "tool": __version__,
        **packages,
        "python": python,
    }


def compute_fingerprint(recipe: Recipe, description: Mapping[str, object]) -> str:
    """Hash recipe, text and versions; the location of the text is not part of it."""
    settings = {
        k: v for k, v in asdict(recipe).items() if k not in ("text", "packages")
    }
    return compute_digest([settings, description, collect_versions()])


def index_path(recipe: Recipe) -> Path:
    """Return the path of the file that stores a recipe's fingerprint."""
    folder = cache_root() / "index"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{compute_digest(asdict(recipe))}.json"


def build_index_entry(
    recipe: Recipe, source: Source, fingerprint: str
) -> dict[str, object]:
    """Build the facts under which a fingerprint is valid without reading the text."""
    facts = {"source": source.collect_quick_facts(), "versions": collect_versions()}
    return {"fingerprint": fingerprint, "facts": compute_digest(facts)}


def compute_digest(facts: object) -> str:
    """Return a 16-character hash of facts as JSON."""
    text = json.dumps(facts, sort_keys=True, default=list).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return the sha256 of a file; "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_packages() -> None:
    """Raise LabError if the training extra is not installed."""
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


def seal_folder(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process has made the same."""
    for path in temporary.iterdir():
        path.chmod(0o444)
    temporary.chmod(0o755)
    if folder.exists():  # made by a run that was killed before it had a manifest
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / "manifest.json").exists():
            raise


def split_documents(
    documents: Sequence[Document], recipe: Recipe
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Split documents: (texts by split, counts of removed duplicates).

    Held-out documents are drawn by a hash of their names, so that another order or a
    few more files change few of them.
    """
    shuffled = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    eligible_bytes = sum(len(d.text.encode()) for d in shuffled if d.may_hold_out)
    wanted = {"validation": recipe.validation_bytes, "holdout": recipe.holdout_bytes}
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    removed = {"within held-out": 0, "training text that is held out": 0}
    seen: set[bytes] = set()
    rest: list[Document] = []
    waiting = [d for d in shuffled if d.may_hold_out]
    for name, most in wanted.items():
        left = min(most, eligible_bytes * MAX_HELD_OUT_SHARE)
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
    """Return a key that is equal for texts that differ only in outer white space."""
    return hashlib.sha256(text.strip().encode()).digest()


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, show: ShowProgress
) -> tuple["tiktoken.Encoding", list[bytes]]:
    """Train a byte-pair encoding of `vocabulary` ids, the document mark included."""
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
    """Yield a random sample of the training text, enough for a tokenizer."""
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    left = TOKENIZER_SAMPLE_BYTES
    for index in order:
        if left <= 0:
            return
        left -= len(texts[index])
        yield texts[index]


def encoding_from_ranks(ranks: Sequence[bytes]) -> "tiktoken.Encoding":
    """Make a tiktoken encoding from ranks; the document mark comes last."""
    import tiktoken

    return tiktoken.Encoding(
        "autoresearch",
        pat_str=PRETOKENIZER_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={DOCUMENT_MARK: len(ranks)},
    )


def write_ranks(path: Path, ranks: Sequence[bytes]) -> None:
    """Write one token a line, base64, in order of rank."""
    lines = (base64.b64encode(token).decode() for token in ranks)
    path.write_text("\n".join(lines) + "\n")


def read_ranks(path: Path) -> list[bytes]:
    """Read what `write_ranks` wrote."""
    return [base64.b64decode(line) for line in path.read_text().split()]


def pack_split(
    texts: Sequence[str],
    encoding: "tiktoken.Encoding",
    lengths: Sequence[int],
    folder: Path,
    name: str,
    show: ShowProgress,
) -> dict[str, int]:
    """Tokenise a split into one uint16 file, a mark before each document.

    lengths: bytes of each token. Return the counts of documents, tokens and bytes.
    """
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
