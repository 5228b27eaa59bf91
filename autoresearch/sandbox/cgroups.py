"""Control groups, where they can be had: memory and processes as the kernel sees them.

A control group sees what no list of processes shows: memory that belongs to a memfd or
to a mounted tmpfs. Version 2 is used where a parent with the memory controller may be
written to (root, or a delegated user service), version 1 likewise. Where neither is to
be had, the cage measures processes from outside, and `find` says so by returning None.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOST_PROCESSES = 8192  # threads count too, and torch starts one per core and pool
ROOT = Path("/sys/fs/cgroup")
GONE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process may make control groups for its guests."""

    parents: tuple[Path, ...]  # one for version 2; memory and pids for version 1
    version: int

    def new(self, memory_gb: float) -> "Group | None":
        """A group with these limits; None when the kernel refuses after all."""
        name = f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
        group = Group(tuple(parent / name for parent in self.parents), self.version)
        try:
            group.limit(int(memory_gb * 1e9))
        except OSError:
            group.close()
            return None
        return group


class Group:
    """The control group of one guest."""

    def __init__(self, folders: tuple[Path, ...], version: int) -> None:
        self._folders = folders
        self._version = version
        self._oom = False
        self._peak_gb = 0.0

    @property
    def joins(self) -> tuple[str, ...]:
        return tuple(str(folder / "cgroup.procs") for folder in self._folders)

    def limit(self, memory_bytes: int) -> None:
        """Make the group and set what it may take."""
        for folder in self._folders:
            folder.mkdir()
        memory, processes = self._folders[0], self._folders[-1]
        if self._version == 2:
            (memory / "memory.max").write_text(str(memory_bytes))
            with suppress(OSError):  # no swap accounting on this kernel
                (memory / "memory.swap.max").write_text("0")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
        with suppress(OSError):
            (processes / "pids.max").write_text(str(MOST_PROCESSES))

    @property
    def memory_gb(self) -> float:
        """Peak of what cannot be given back: not files that were merely read."""
        with suppress(OSError, ValueError):
            words = (self._folders[0] / "memory.stat").read_text().split()
            stat = dict(zip(words[::2], map(int, words[1::2]), strict=True))
            if self._version == 2:
                used = stat["anon"] + stat["shmem"]
            else:
                used = stat["total_rss"] + stat.get("total_shmem", 0)
            self._peak_gb = max(self._peak_gb, used / 1e9)
        return self._peak_gb

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed something of it for its memory."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        with suppress(OSError):
            words = (self._folders[0] / name).read_text().split()
            counts = dict(zip(words[::2], words[1::2], strict=True))
            self._oom = self._oom or int(counts.get("oom_kill", 0)) > 0
        return self._oom

    def close(self) -> None:
        """Kill what is left in it and remove it; the kernel may need a moment."""
        self.out_of_memory  # noqa: B018  (remembered: the files go away)
        deadline = time.monotonic() + GONE_SECONDS
        for folder in self._folders:
            with suppress(OSError):
                (folder / "cgroup.kill").write_text("1")
            while folder.exists() and time.monotonic() < deadline:
                with suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.002)


def find() -> Place | None:
    """Where groups can be made, tried and not guessed; None where they cannot."""
    for place in candidates():
        group = place.new(1.0)
        if group is not None:
            group.close()
            return place
    return None


def candidates() -> list[Place]:
    """Places worth a try, the most fitting first."""
    mine = own_groups()
    found = []
    uid = os.getuid()
    if "" in mine:
        service = f"user.slice/user-{uid}.slice/user@{uid}.service"
        for parent in (ROOT, ROOT / service, ROOT / mine[""].lstrip("/")):
            with suppress(OSError):
                if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                    found.append(Place((parent,), 2))
    for where in (mine, dict.fromkeys(mine, "/")):
        if "memory" in where:
            names = [name for name in ("memory", "pids") if name in where]
            parents = tuple(ROOT / name / where[name].lstrip("/") for name in names)
            if all(parent.is_dir() for parent in parents):
                found.append(Place(parents, 1))
    return found


def own_groups() -> dict[str, str]:
    """Controller -> path of this process's group; version 2 goes by the name ""."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                found[name] = path
    return found
