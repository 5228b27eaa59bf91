"""Control groups, where available: memory and processes as the kernel counts them.

A control group also counts memory that belongs to no process: a memfd or a mounted
tmpfs. Version 2 is used where a parent with the memory controller is writable (root, or
a delegated user service), version 1 likewise. Where neither is, `find_cgroup_parent`
returns None, and memory is measured from outside, process by process.
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
    """Where this process may create control groups."""

    parents: tuple[Path, ...]  # one for version 2; memory and pids for version 1
    version: int

    def create_group(self, memory_gb: float) -> "Cgroup | None":
        """Create a group with these limits; None where the kernel refuses."""
        name = f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
        group = Cgroup(tuple(parent / name for parent in self.parents), self.version)
        try:
            group.create_with_limits(int(memory_gb * 1e9))
        except OSError:
            group.close()
            return None
        return group


class Cgroup:
    """The control group of one sandboxed process."""

    def __init__(self, folders: tuple[Path, ...], version: int) -> None:
        self._folders = folders
        self._version = version
        self._was_oom_killed = False
        self._peak_gb = 0.0

    @property
    def procs_files(self) -> tuple[str, ...]:
        return tuple(str(folder / "cgroup.procs") for folder in self._folders)

    def create_with_limits(self, memory_bytes: int) -> None:
        """Create the group and set its memory and process limits."""
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
        """Peak of anonymous and shared memory; the page cache does not count."""
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
        """Whether the kernel's OOM killer killed one of its processes."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        with suppress(OSError):
            words = (self._folders[0] / name).read_text().split()
            counts = dict(zip(words[::2], words[1::2], strict=True))
            self._was_oom_killed = (
                self._was_oom_killed or int(counts.get("oom_kill", 0)) > 0
            )
        return self._was_oom_killed

    def close(self) -> None:
        """Kill the remaining processes and remove the group; may take a moment."""
        self.is_oom_killed  # noqa: B018  (reads it before the files go)
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
    """The first parent in which a group can really be created; None without one."""
    for parent in list_candidate_parents():
        group = parent.create_group(1.0)
        if group is not None:
            group.close()
            return parent
    return None


def list_candidate_parents() -> list[CgroupParent]:
    """Parents worth trying, the best first."""
    own = read_own_cgroups()
    found = []
    uid = os.getuid()
    if "" in own:
        service = f"user.slice/user-{uid}.slice/user@{uid}.service"
        for parent in (
            CGROUP_MOUNT,
            CGROUP_MOUNT / service,
            CGROUP_MOUNT / own[""].lstrip("/"),
        ):
            with suppress(OSError):
                if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                    found.append(CgroupParent((parent,), 2))
    for where in (own, dict.fromkeys(own, "/")):
        if "memory" in where:
            names = [name for name in ("memory", "pids") if name in where]
            parents = tuple(
                CGROUP_MOUNT / name / where[name].lstrip("/") for name in names
            )
            if all(parent.is_dir() for parent in parents):
                found.append(CgroupParent(parents, 1))
    return found


def read_own_cgroups() -> dict[str, str]:
    """Controller -> path of this process's group; version 2 has the key ""."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                found[name] = path
    return found
