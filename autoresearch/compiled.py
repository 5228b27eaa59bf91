"""What the person's own train.py compiled, lent to every later run.

A cold start compiles for a minute on a GPU. A cache of compiled code is itself code,
and a place to leave trained weights in: nothing that a run wrote may reach another run.
There is one exception: experiment 0 is the train.py that the person wrote, who has
nobody to cheat. What its first run compiled is kept; every run, whoever's, starts with
a private copy, which dies with it. A candidate that changes constants finds most of
what it needs there, one that changes the model compiles anew. The same for processes
that serve, apart, where a text is so long that they compile (`evaluator`).

Not covered: a person whose own train.py deceives them, and other labs.
"""

import os
import shutil
import stat
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autoresearch.cage import COMPILED, Task
from autoresearch.experiment import PERSON, Proposal
from autoresearch.lab import Lab

LARGEST_BYTES = 1 << 30
MOST_FILES = 50_000


def store(lab: Lab, task: Task) -> Path:
    """Where it is kept for the torch that is installed: another one's is of no use."""
    try:
        name = version("torch")
    except PackageNotFoundError:
        name = "none"
    return lab.state / "compiled" / (name if task == "train" else f"{name}-{task}")


def lend(lab: Lab, scratch: Path, task: Task, *, own: bool) -> None:
    """Put a private copy into a run's folder, or an empty one for the person's own."""
    kept, place = store(lab, task), scratch / COMPILED
    if kept.is_dir():
        shutil.copytree(kept, place)
    elif own:
        place.mkdir()
    else:
        return
    for path in (place, *place.rglob("*")):  # the guest may be another user
        path.chmod(0o777 if path.is_dir() else 0o666)


def keep(lab: Lab, proposal: Proposal, scratch: Path, task: Task) -> None:
    """Keep what the person's own train.py compiled, the first time; all or nothing."""
    kept, place = store(lab, task), scratch / COMPILED
    if kept.exists() or not persons(proposal) or not place.is_dir():
        return
    files = plain_files(place)
    if not files:
        return
    kept.parent.mkdir(exist_ok=True)
    half = kept.parent / f"half-{uuid.uuid4().hex}"
    try:
        for file in files:
            target = half / file.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target, follow_symlinks=False)
        os.rename(half, kept)
    except OSError:  # a full disk, or another run was first: later runs compile anew
        shutil.rmtree(half, ignore_errors=True)


def persons(proposal: Proposal) -> bool:
    """Whether the person wrote it: the first thing a lab measures, before any keep."""
    return proposal.author == PERSON


def plain_files(place: Path) -> list[Path]:
    """Every regular file below, no links; none at all where there is too much."""
    found, total = [], 0
    for parent, _, names in os.walk(place):
        for name in names:
            status = os.lstat(path := Path(parent, name))
            if stat.S_ISREG(status.st_mode):
                found.append(path)
                total += status.st_size
            if total > LARGEST_BYTES or len(found) > MOST_FILES:
                return []
    return found
