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

MAX_PROCESSES = 8192  # threads count too, and torch starts one per core and pool
CGROUP_MOUNT = Path("/sys/fs/cgroup")
REMOVAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class CgroupParent:
    """Where this process may make control groups for its guests."""

    parents: tuple[Path, ...]  # one for version 2; memory and pids for version 1
    version: int

    def create_group(self, memory_gb: float) -> "Cgroup | None":
        """A group with these limits; None when the kernel refuses after all."""
        name = f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
        group = Cgroup(tuple(parent / name for parent in self.parents), self.version)
        try:
            group.create_with_limits(int(memory_gb * 1e9))
        except OSError:
            group.close()
            return None
        return group


class Cgroup:
    """The control group of one guest."""

    def __init__(self, folders: tuple[Path, ...], version: int) -> None:
        self._folders = folders
        self._version = version
        self._was_oom_killed = False
        self._peak_gb = 0.0

    @property
    def procs_files(self) -> tuple[str, ...]:
        return tuple(str(folder / "cgroup.procs") for folder in self._folders)

    def create_with_limits(self, memory_bytes: int) -> None:
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
            (processes / "pids.max").write_text(str(MAX_PROCESSES))

    @property
    def peak_memory_gb(self) -> float:
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
    def is_oom_killed(self) -> bool:
        """Whether the kernel killed something of it for its memory."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        with suppress(OSError):
            words = (self._folders[0] / name).read_text().split()
            counts = dict(zip(words[::2], words[1::2], strict=True))
            self._was_oom_killed = (
                self._was_oom_killed or int(counts.get("oom_kill", 0)) > 0
            )
        return self._was_oom_killed

    def close(self) -> None:
        """Kill what is left in it and remove it; the kernel may need a moment."""
        self.is_oom_killed  # noqa: B018  (remembered: the files go away)
        deadline = time.monotonic() + REMOVAL_SECONDS
        for folder in self._folders:
            with suppress(OSError):
                (folder / "cgroup.kill").write_text("1")
            while folder.exists() and time.monotonic() < deadline:
                with suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.002)


def find_cgroup_parent() -> CgroupParent | None:
    """Where groups can be made, tried and not guessed; None where they cannot."""
    for place in list_candidate_parents():
        group = place.create_group(1.0)
        if group is not None:
            group.close()
            return place
    return None


def list_candidate_parents() -> list[CgroupParent]:
    """Places worth a try, the most fitting first."""
    mine = read_own_cgroups()
    found = []
    uid = os.getuid()
    if "" in mine:
        service = f"user.slice/user-{uid}.slice/user@{uid}.service"
        for parent in (
            CGROUP_MOUNT,
            CGROUP_MOUNT / service,
            CGROUP_MOUNT / mine[""].lstrip("/"),
        ):
            with suppress(OSError):
                if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                    found.append(CgroupParent((parent,), 2))
    for where in (mine, dict.fromkeys(mine, "/")):
        if "memory" in where:
            names = [name for name in ("memory", "pids") if name in where]
            parents = tuple(
                CGROUP_MOUNT / name / where[name].lstrip("/") for name in names
            )
            if all(parent.is_dir() for parent in parents):
                found.append(CgroupParent(parents, 1))
    return found


def read_own_cgroups() -> dict[str, str]:
    """Controller -> path of this process's group; version 2 goes by the name ""."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                found[name] = path
    return found
