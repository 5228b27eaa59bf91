"""What the user's own train.py compiled, lent to every later run.

A cold start compiles for a minute on a GPU. A cache of compiled code is itself code,
and trained weights could be hidden in it: nothing that a run wrote may reach another
run. There is one exception: experiment 0 is the train.py that the user wrote, who has
no reason to cheat. What its first run compiled is kept, in `check` or in a session;
every run starts with a private copy, which is deleted with it. A candidate that changes
constants finds most of what it needs there, one that changes the model compiles anew.
Processes that serve have a cache of their own, used where a text is so long that they
compile (`evaluator`).

Not covered: a user whose own train.py deceives them, and other labs.
"""

import contextlib
import json
import os
import shutil
import stat
import uuid
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

from autoresearch.atomic_file import write_whole
from autoresearch.experiment import HUMAN_AUTHOR, Proposal
from autoresearch.git import compute_blob_id
from autoresearch.lab.folder import Lab
from autoresearch.sandbox.process import (
    COMPILE_CACHE_FOLDER,
    ProcessRole,
    remove_folder,
)

LARGEST_BYTES = 1 << 30
MAX_FILES = 50_000


def cache_folder(lab: Lab, task: ProcessRole) -> Path:
    """Return the folder for the installed torch: other versions have their own."""
    try:
        name = version("torch")
    except PackageNotFoundError:
        name = "none"
    return (
        lab.state_folder / "compiled" / (name if task == "train" else f"{name}-{task}")
    )


def create_compile_folder(scratch: Path) -> None:
    """Create an empty compile cache in a run's folder."""
    folder = scratch / COMPILE_CACHE_FOLDER
    folder.mkdir()
    folder.chmod(0o777)  # the process may run as another user


def copy_to_scratch(lab: Lab, scratch: Path, task: ProcessRole) -> None:
    """Copy the cache into a run's folder, if there is one."""
    cache, folder = cache_folder(lab, task), scratch / COMPILE_CACHE_FOLDER
    if cache.is_dir():
        shutil.copytree(cache, folder, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)


def discard_other_blobs(lab: Lab, *blobs: str) -> None:
    """Delete what any other train.py compiled than the given baselines of a lab.

    `check` may have compiled another one, of unknown author. A cache without a note
    dates from the lab's first session and stays.
    """
    for task in get_args(ProcessRole):
        if load_note(lab, task).blob not in ("", *blobs):
            old = cache_folder(lab, task).with_name(f"old-{uuid.uuid4().hex}")
            with contextlib.suppress(
                FileNotFoundError
            ):  # another process does the same
                os.rename(cache_folder(lab, task), old)
            note_path(lab, task).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(lab: Lab) -> None:
    """Remove what a killed process had half stored or half deleted."""
    for pattern in ("half-*", "old-*", ".*"):
        for path in cache_folder(lab, "train").parent.glob(pattern):
            remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def store_compiled(
    lab: Lab, proposal: Proposal, scratch: Path, task: ProcessRole, seconds: float = 0.0
) -> None:
    """Store what the user's own train.py compiled, the first time; all or nothing.

    seconds: its start-up, which limits later ones. A run that compiles anew takes as
    long, and must not be killed because the calibrating run was lent its code.
    """
    cache, folder = cache_folder(lab, task), scratch / COMPILE_CACHE_FOLDER
    if cache.exists() or not is_human_baseline(proposal) or not folder.is_dir():
        return
    files = list_regular_files(folder)
    if not files:
        return
    cache.parent.mkdir(exist_ok=True)
    half = cache.parent / f"half-{uuid.uuid4().hex}"
    try:
        for file in files:
            target = half / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target, follow_symlinks=False)
        note = CacheNote(compute_blob_id(proposal.source), seconds)
        write_whole(note_path(lab, task), json.dumps(asdict(note)))
        os.rename(half, cache)
    except OSError:  # a full disk, or another run was first
        shutil.rmtree(half, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class CacheNote:
    """Which train.py filled a cache, and how long it took."""

    blob: str = ""  # of the train.py that compiled it
    seconds: float = 0.0  # its start-up with an empty cache; 0 for serving


def note_path(lab: Lab, task: ProcessRole) -> Path:
    """Return the path of the note beside a cache."""
    cache = cache_folder(lab, task)
    return cache.with_name(f"{cache.name}.json")


def load_note(lab: Lab, task: ProcessRole) -> CacheNote:
    """Load the note beside a cache; an empty one if there is none."""
    if not cache_folder(lab, task).is_dir():
        return CacheNote()
    try:
        return CacheNote(**json.loads(note_path(lab, task).read_text()))
    except (OSError, ValueError, TypeError):
        return CacheNote()


def is_human_baseline(proposal: Proposal) -> bool:
    """Whether the user wrote it: what a lab measures first, before any keep."""
    return proposal.author == HUMAN_AUTHOR


def list_regular_files(folder: Path) -> list[Path]:
    """List every regular file below, no links; nothing if it exceeds the limits."""
    files, total_bytes = [], 0
    for parent, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(path := Path(parent, name))
            if stat.S_ISREG(status.st_mode):
                files.append(path)
                total_bytes += status.st_size
            if total_bytes > LARGEST_BYTES or len(files) > MAX_FILES:
                return []
    return files
