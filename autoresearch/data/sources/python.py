"""`python`: the source code of the standard library and of installed packages.

Real text on every machine, without a network. Held-out documents come only from
directories named `test` or `tests`: train.py needs to read the library itself, but
those directories can be hidden from it.

Not covered: machines with other versions have another text, and so another series.
"""

import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path

from autoresearch.data.sources import Document, ShowProgress

LARGEST_FILE_BYTES = 1 << 20
LARGEST_HELD_OUT_CHARACTERS = 32_000  # many documents rather than a few huge ones
TEST_FOLDERS = {"test", "tests"}
EXCLUDED_FOLDERS = {"site-packages", "__pycache__", "dist-packages", "node_modules"}


class PythonSource:
    """The .py files of the standard library and of the named packages."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._roots = [("python", Path(sysconfig.get_path("stdlib")))]
        self._versions = {"python": sysconfig.get_python_version()}
        for name in packages:
            spec = util.find_spec(name)
            folders = spec.submodule_search_locations if spec else None
            if folders:
                self._roots.append((name, Path(folders[0])))
                self._versions[name] = metadata.version(name)

    def collect_quick_facts(self) -> Mapping[str, object]:
        """Return versions, and a hash over names, sizes and times of all files."""
        digest = hashlib.sha256()
        for name, path in self._iter_files():
            stat = path.stat()
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return {"versions": self._versions, "files": digest.hexdigest()}

    def fetch(self, show: ShowProgress) -> None:
        """Do nothing: the files are local."""

    def describe(self) -> Mapping[str, object]:
        """Return versions, and a hash over every file's name and bytes."""
        digest, count, size = hashlib.sha256(), 0, 0
        for name, path in self._iter_files():
            body = path.read_bytes()
            digest.update(f"{name} {hashlib.sha256(body).hexdigest()}\n".encode())
            count, size = count + 1, size + len(body)
        return {
            "text": "python",
            "versions": self._versions,
            "files": count,
            "bytes": size,
            "sha256": digest.hexdigest(),
        }

    def iter_documents(self) -> Iterator[Document]:
        """Yield every file that is UTF-8 text."""
        for name, path in self._iter_files():
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:
                continue  # a few test files use other encodings on purpose
            if text.strip():
                folders = set(Path(name).parts[:-1])
                is_short = len(text) <= LARGEST_HELD_OUT_CHARACTERS
                yield Document(name, text, is_short and bool(folders & TEST_FOLDERS))

    def _iter_files(self) -> Iterator[tuple[str, Path]]:
        for label, root in self._roots:
            for path in iter_python_files(root):
                yield f"{label}/{path.relative_to(root).as_posix()}", path


def iter_python_files(folder: Path) -> Iterator[Path]:
    """Yield the .py files below a folder, sorted; no links, nothing huge or empty."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name in EXCLUDED_FOLDERS:
            continue
        if path.is_dir():
            yield from iter_python_files(path)
        elif path.suffix == ".py" and 0 < path.stat().st_size <= LARGEST_FILE_BYTES:
            yield path
