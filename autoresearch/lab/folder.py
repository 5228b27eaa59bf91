"""A lab is a folder under git that tracks three files.

* prepare.py   locked: data and the metric
* train.py     mutable: the only file a proposal may change
* program.md   the user's: what to look for, and a few settings on top

Everything the harness stores lies in `.autoresearch/` beside them. This module knows
the paths and checks that the three files can be used; it starts no process.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoresearch.atomic_file import write_whole
from autoresearch.errors import LabBusy, LabError
from autoresearch.lab import program
from autoresearch.lab.program import Program

LAB_FILES = ("prepare.py", "train.py", "program.md")
LARGEST_FILE_BYTES = 1 << 20
FREE_BYTES_NEEDED = 200 << 20


@dataclass(frozen=True, slots=True)
class Lab:
    """A folder with the three files, and the paths beside them."""

    folder: Path

    @classmethod
    def find(cls, start: Path) -> "Lab":
        """Find the lab that `start` is in, or raise LabError."""
        start = start.resolve()
        for folder in (start, *start.parents):
            if (folder / "prepare.py").is_file() and (folder / "train.py").is_file():
                return cls(folder).require_files()
        if (start / "train.py").is_file() and (start / "program.md").is_file():
            return cls(start).require_files()
        raise LabError(
            f"{start} is not a lab: it has no {' or '.join(LAB_FILES[:2])}. "
            "Next: autoresearch new LAB, then cd LAB"
        )

    def require_files(self) -> "Lab":
        """Return this lab, or raise LabError naming the file that is missing."""
        for name in LAB_FILES:
            if not self.file_path(name).is_file():
                raise LabError(
                    f"{self.folder} has no {name}; a lab needs {', '.join(LAB_FILES)}"
                    f". Next: git checkout -- {name}, or autoresearch new for a new lab"
                )
        return self

    def file_path(self, name: str) -> Path:
        """Return the path of one of the lab's files."""
        return self.folder / name

    def read_file(self, name: str) -> str:
        """Read one of the lab's files, or raise LabError."""
        path = self.file_path(name)
        try:
            if path.stat().st_size > LARGEST_FILE_BYTES:
                raise LabError(f"{path} is larger than 1 MB. Next: shorten it")
            return path.read_bytes().decode()
        except UnicodeDecodeError:
            raise LabError(f"{path} is not UTF-8 text. Next: save it as such") from None
        except OSError as error:
            raise LabError(f"{path} cannot be read: {error.strerror}") from None

    def load_program(self) -> Program:
        """Load program.md as it is now."""
        return program.parse_program(self.read_file("program.md"))

    @property
    def state_folder(self) -> Path:
        """The harness's folder, created on first use and ignored by git."""
        folder = self.folder / ".autoresearch"
        try:
            folder.mkdir(exist_ok=True)
            ignore = folder / ".gitignore"
            if not ignore.exists():
                write_whole(ignore, "*\n")
        except OSError as error:
            raise LabError(
                f"{folder} cannot be made or written: {error.strerror}. "
                f"Next: make {self.folder} a folder you may write to"
            ) from None
        return folder

    @property
    def ledger_path(self) -> Path:
        """The SQLite file."""
        return self.state_folder / "ledger.db"

    @property
    def results_path(self) -> Path:
        """The ledger as a table for users."""
        return self.folder / "results.tsv"

    @property
    def pause_path(self) -> Path:
        """While this file exists, a session starts nothing new."""
        return self.state_folder / "paused"

    @property
    def live_status_path(self) -> Path:
        """The live status of the runs, for views."""
        return self.state_folder / "now.json"

    def run_folder(self, number: int, seed: int) -> Path:
        """Return the folder for the files of one run, deleted after it."""
        return self.state_folder / "runs" / f"{number}-{seed}"

    @property
    def log_folder(self) -> Path:
        """The folder of the logs of all runs."""
        folder = self.state_folder / "logs"
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Be the only `run` in this lab; the kernel releases the lock at exit."""
        self.require_writable()
        descriptor = os.open(
            self.state_folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        if not try_lock(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise LabBusy(
                f"{self.folder} is in use by another run (process {holder}). "
                "Next: autoresearch status --follow, or autoresearch stop"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.close(descriptor)

    def find_lock_holder(self) -> int | None:
        """Return the pid that runs this lab now; None: none does."""
        path = self.state_folder / "lock"
        if not path.exists():
            return None
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = file.read(32).strip()
                return int(pid) if pid.isdigit() else None
        return None

    @property
    def is_writable(self) -> bool:
        """Whether anything can be written here; views only read."""
        return os.access(self.state_folder, os.W_OK) and os.access(self.folder, os.W_OK)

    def require_writable(self) -> None:
        """Raise LabError if nothing can be written."""
        if not self.is_writable:
            raise LabError(
                f"{self.folder} is read-only. Next: make it a folder you may write "
                "to, or git clone it to one; status, log, show and report read it"
            )

    def require_disk_space(self) -> None:
        """Raise LabError if the disk is too full to continue."""
        free = os.statvfs(self.folder)
        if free.f_bavail * free.f_frsize < FREE_BYTES_NEEDED:
            raise LabError(
                f"{self.folder}: less than {FREE_BYTES_NEEDED >> 20} MB of disk are "
                "free. Next: make space, then: autoresearch run   (it continues where "
                "it was)"
            )


def try_lock(descriptor: int) -> bool:
    """Take a lock; False: another process holds it for longer than 0.4 s.

    A view that looks for the lock holder takes the lock itself for a moment.
    """
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False
