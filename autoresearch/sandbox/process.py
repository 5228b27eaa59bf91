"""A guest process and its limits: started, listened to, measured, killed whole.

Covered, whatever stands around the guest:
- a process tree that dies whole, also what called setsid or forked twice, also when
  the harness is killed at any instruction (`warden`), also when it kills its warden
- an environment of a few named variables; no inherited file descriptors
- limits on memory, disk, log and messages, enforced from outside while it runs
- a log that is capped and cannot fill the disk

What a guest can see and reach is the business of `walls`, which are handed in. Without
any (level `none`) these are open: the network; files that this user can read or write
elsewhere; memory that is in no process (a memfd, /dev/shm); a guest that kills its
warden and then hides its environment.
"""

import contextlib
import hashlib
import itertools
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import psutil

from autoresearch.errors import RunStopped
from autoresearch.experiment import Device
from autoresearch.sandbox import supervisor
from autoresearch.sandbox.ipc import Channel, ChannelClosed, Message
from autoresearch.sealed_memory import ProtocolError

ProcessRole = Literal["train", "serve"]  # what a guest is there for

# In every guest's environment, for sweeping: a name of its lab and one of its folder.
MARK_VARIABLE = "AUTORESEARCH_GUEST_OF"

LOG_HEAD_BYTES, LOG_TAIL_BYTES = 32 * 1024, 64 * 1024
COMPILE_CACHE_FOLDER = (
    ".compiled"  # what of a run's folder it may write; see `compiled`
)
MAX_LOG_BYTES = 100 << 20
MOST_MESSAGES = 100_000
POLL_SECONDS = 0.05
LOOK_EVERY_SECONDS = 0.5  # at memory and disk: a walk over the process tree
SEND_SECONDS = 5.0  # for the kernel to take a message; a guest that reads takes none
MOST_FILES = 100_000  # below its folder: empty ones take no space, but time to list

# Passed on to guests when set: where CUDA and shared libraries are found, and language.
PASSED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "LANG", "LC_ALL", "TZ")
# Threads that spin while they wait ran 8 to 16 times slower beside one busy neighbour.
THREAD_VARIABLES = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
}

PYTHON_COMMAND = (sys.executable, "-I", "-B", "-u", "-c")
RUNTIME_CODE = (
    "import sys; from autoresearch.guest.runtime import main;"
    " main(int(sys.argv[1]), *sys.argv[2:])"
)


class ProcessExited(Exception):
    """The guest is gone. `code` is its exit code, negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.exit_code = code


class LimitExceeded(Exception):
    """The guest took more than it may have; the message says of what."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(detail)
        self.resource = what  # "memory" or "other"


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """What a guest may take besides time."""

    memory_gb: float
    disk_gb: float = 4.0  # in its folder, and the largest single file
    log_bytes: int = MAX_LOG_BYTES


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What one guest is given. Its folder holds train.py and what else it may read;

    what lies in its folder COMPILED it may write, too.
    """

    folder: Path
    lab: Path
    slot: Device
    limits: ResourceLimits


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How a guest is started behind walls."""

    command_prefix: tuple[
        str, ...
    ]  # the words of a command line that puts the walls up
    environment: Mapping[str, str]
    restrictions: str  # what the guest forbids itself; see `fence.Fence.words`
    descriptors: tuple[int, ...] = ()  # for the command; closed when it has started
    control_group: "ControlGroup | None" = (
        None  # what the kernel counts and limits it by
    )


class ControlGroup(Protocol):
    """A control group that one guest lives in."""

    @property
    def procs_files(self) -> tuple[str, ...]:
        """Files that the guest's first process writes itself into."""
        ...

    @property
    def peak_memory_gb(self) -> float:
        """Peak of all memory, also of what is in no process."""
        ...

    @property
    def is_oom_killed(self) -> bool:
        """Whether the kernel killed something of it for its memory."""
        ...

    def close(self) -> None:
        """Kill what is left in it and remove it."""
        ...


class SandboxBackend(Protocol):
    """What stands around every guest of a night."""

    @property
    def level(self) -> str:
        """Its name in program.md and in every row."""
        ...

    def build_launch_spec(self, room: SandboxSpec) -> LaunchSpec:
        """The way in, for one guest."""
        ...


class Unsandboxed:
    """Level `none`: the guest runs as this user, with a bare environment."""

    level = "none"

    def build_launch_spec(self, room: SandboxSpec) -> LaunchSpec:
        return LaunchSpec((), build_environment(room), "")


class CappedLog:
    """The first and the last of what a guest printed, and how much there was."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    def append(self, printed: bytes) -> None:
        self.total_bytes += len(printed)
        room = LOG_HEAD_BYTES - len(self._head)
        self._head += printed[:room]
        rest = printed[room:] if room > 0 else printed
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
        while self._tail_bytes - len(self._tail[0] if self._tail else b"") > (
            LOG_TAIL_BYTES
        ):
            self._tail_bytes -= len(self._tail.popleft())

    def join_kept(self) -> bytes:
        """Head and tail, with a line that says what is missing between them."""
        tail = b"".join(self._tail)
        missing = self.total_bytes - len(self._head) - len(tail)
        gap = b"\n[... %d bytes not kept ...]\n" % missing if missing > 0 else b""
        return bytes(self._head) + gap + tail


class SandboxedProcess:
    """One caged process tree. Use as a context manager: leaving it kills everything."""

    def __init__(
        self,
        folder: Path,
        *,
        lab: Path,
        slot: Device,
        limits: ResourceLimits,
        stop: "StopFlag",
        walls: SandboxBackend | None = None,
        code: str = RUNTIME_CODE,
        ahead: tuple[str, ...] = (),
    ) -> None:
        """ahead: modules to import before it is told anything."""
        self.folder = folder
        self.log = CappedLog()
        self.peak_memory_gb = 0.0  # peak of the tree so far
        self.has_seen_held_out = False  # whether it has been shown held-out data
        self._lab = lab
        self._limits = limits
        self._stop = stop
        self._checked_at = 0.0
        self._check_seconds = 0.0  # what the last look took
        self._message_count = 0
        self._exit_code: int | None = None  # None: it is running
        room = SandboxSpec(folder, lab, slot, limits)
        entry = (walls or Unsandboxed()).build_launch_spec(room)
        self._control_group = entry.control_group
        self._has_launcher = bool(entry.command_prefix)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(SEND_SECONDS)  # one that never reads must not hold up a night
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._log_pipe, writes = os.pipe()
        os.set_blocking(self._log_pipe, False)
        command = (
            *PYTHON_COMMAND,
            code,
            str(theirs.fileno()),
            entry.restrictions,
            *ahead,
        )
        self._process = spawn_supervisor(
            room, entry, command, control.fileno(), theirs.fileno(), writes
        )
        for end in (theirs, control):
            end.close()
        for descriptor in (writes, *entry.descriptors):
            os.close(descriptor)
        self._thread_id = threading.get_native_id()
        self._has_raised_priority = raise_thread_priority(self._thread_id)
        self.channel = Channel(ours)
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ, "channel")
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        self._selector.register(self._log_pipe, selectors.EVENT_READ, "log")

    def __enter__(self) -> "SandboxedProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def send(self, message: Message, *descriptors: int) -> None:
        """Tell the guest something. One that is gone is noticed by `receive`."""
        with contextlib.suppress(ChannelClosed):
            self.channel.send(message, *descriptors)

    def receive(self, deadline: float) -> tuple[Message, list[int]]:
        """The guest's next message by `deadline` (time.monotonic).

        Raises TimeoutError, Exited, OverLimit, Stopped or Junk.
        """
        while (found := self.channel.pop_message()) is None:
            if self._exit_code is not None:
                raise ProcessExited(self._exit_code)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._poll_inputs(min(left, POLL_SECONDS))
            self._check_limits_if_due(deadline)
        self._message_count += 1
        if self._message_count > MOST_MESSAGES:
            raise ProtocolError(f"more than {MOST_MESSAGES} messages")
        return found

    def receive_message(self, deadline: float) -> Message:
        """`receive` where no descriptor belongs: what it sends all the same is closed.

        Kept open, a few a message would be more than this process may have.
        """
        message, descriptors = self.receive(deadline)
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _poll_inputs(self, limit_seconds: float) -> None:
        """Take in whatever arrives next, for at most this long."""
        if self._stop.now:
            raise RunStopped
        for key, _ in self._selector.select(limit_seconds):
            if key.data == "log":
                self._drain_log()
            elif key.data == "control":
                self._record_exit()
            elif self._exit_code is None:
                try:
                    self.channel.fill_buffer()
                except ChannelClosed:
                    self._selector.unregister(self.channel.socket)

    def _drain_log(self) -> None:
        """Read the log for a while; never for ever, the clock must be looked at."""
        if self._log_pipe not in self._selector.get_map():
            return  # it ended earlier
        for _ in range(64):
            try:
                printed = os.read(self._log_pipe, 1 << 16)
            except BlockingIOError:
                return
            if not printed:
                self._selector.unregister(self._log_pipe)
                return
            self.log.append(printed)

    def _record_exit(self) -> None:
        """The warden has spoken: the guest is gone, and all it started."""
        words = self._control.recv(64).split()
        self._selector.unregister(self._control)
        self._exit_code = int(words[1]) if len(words) == 2 else -signal.SIGKILL
        if self._has_launcher and self._exit_code > 128:
            self._exit_code = 128 - self._exit_code  # how a launcher passes a signal on
        # What it sent and printed before it left still counts, as much as the kernel
        # holds. Not more: what survives a dead warden could go on for ever.
        self._drain_log()
        self.channel.socket.setblocking(False)
        with contextlib.suppress(ChannelClosed, BlockingIOError):
            for _ in range(64):
                self.channel.fill_buffer()

    def _check_limits_if_due(self, deadline: float) -> None:
        """Compare the tree's memory, disk and log with what it may have.

        Not where that could go on past the deadline: a guest can make looking slow.
        """
        if self.log.total_bytes > self._limits.log_bytes:
            mb = self._limits.log_bytes / 1e6
            raise LimitExceeded("other", f"printed more than {mb:.0f} MB")
        now = time.monotonic()
        if now - self._checked_at < LOOK_EVERY_SECONDS + self._check_seconds:
            return
        if now + 2 * self._check_seconds > deadline:
            return
        self._check_limits()
        self._checked_at = time.monotonic()
        self._check_seconds = self._checked_at - now

    def _check_limits(self) -> None:
        """Memory and disk against their limits."""
        self.update_peak_memory()
        if self.peak_memory_gb > self._limits.memory_gb:
            allowed = self._limits.memory_gb
            raise LimitExceeded("memory", f"took more than {allowed:g} GB of memory")
        size_bytes, files = contents(self.folder)
        if files > MOST_FILES:
            raise LimitExceeded("other", f"made more than {MOST_FILES} files")
        if size_bytes > self._limits.disk_gb * 1e9:
            allowed = self._limits.disk_gb
            raise LimitExceeded("other", f"wrote more than {allowed:g} GB to disk")

    def update_peak_memory(self) -> None:
        """Look at the tree's memory now."""
        counted = self._control_group.peak_memory_gb if self._control_group else 0.0
        self.peak_memory_gb = max(
            self.peak_memory_gb, counted or measure_tree_memory_gb(self._process.pid)
        )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def list_pids(self) -> set[int]:
        """Its processes at this moment, as this namespace numbers them."""
        return {process.pid for process in list_descendants(self._process.pid)}

    @property
    def is_oom_killed(self) -> bool:
        """Whether the kernel ended something of it for want of memory."""
        return self._control_group is not None and self._control_group.is_oom_killed

    def kill(self) -> None:
        """Kill the whole tree and wait until it is gone. Safe to call twice."""
        self._control.close()
        try:
            self._process.wait(supervisor.GIVE_UP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            sweep(self._lab, self.folder)  # nobody is left who knows its children
        if self._control_group is not None:
            self._control_group.close()
        if self._log_pipe >= 0:
            with contextlib.suppress(OSError, ValueError):
                self._drain_log()
            self._selector.close()
            os.close(self._log_pipe)
            self._log_pipe = -1
        self.channel.close()
        if self._has_raised_priority:
            restore_thread_priority(self._thread_id)
            self._has_raised_priority = False


def raise_thread_priority(thread: int) -> bool:
    """Let this thread of ours run before any guest, where the system lets us (root).

    Spinning guests on two busy cores kept the harness from its deadline for 40 ms.
    Whoever chose another policy for it keeps that. Whether anything changed.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                rank = os.SCHED_RR | os.SCHED_RESET_ON_FORK
                os.sched_setscheduler(thread, rank, os.sched_param(1))
                return True
    return False


def restore_thread_priority(thread: int) -> None:
    """Take that back."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def spawn_supervisor(
    room: SandboxSpec,
    entry: LaunchSpec,
    command: tuple[str, ...],
    control: int,
    link: int,
    log: int,
) -> subprocess.Popen[bytes]:
    """The warden, which starts the launcher, which starts the guest."""
    given = (link, *entry.descriptors)
    joins = entry.control_group.procs_files if entry.control_group else ()
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", "-B", supervisor.__file__, str(control)),
            *(",".join(map(str, given)), str(int(room.limits.disk_gb * 1e9))),
            *(":".join(joins), *entry.command_prefix, *command),
        ],
        cwd=room.folder,
        env=entry.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(control, *given),
        start_new_session=True,
    )


class StopFlag:
    """A human's wish to end: `soon` after the run in hand, `now` without it."""

    def __init__(self) -> None:
        self.soon = False
        self.now = False


def build_environment(room: SandboxSpec, home: str | None = None) -> dict[str, str]:
    """All a guest gets to see of the world's variables."""
    slot = room.slot
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    where = home or str(room.folder)
    visible = slot.uuid or ("" if slot.index is None else str(slot.index))
    variable = "ROCR_VISIBLE_DEVICES" if slot.device_file else "CUDA_VISIBLE_DEVICES"
    card = {variable: visible} if visible else {}
    return {
        **passed,
        **THREAD_VARIABLES,
        **card,
        "HOME": where,
        "TMPDIR": where,
        "TORCHINDUCTOR_CACHE_DIR": f"{where}/{COMPILE_CACHE_FOLDER}",
        "USER": "guest",  # torch names its caches by it; there may be no /etc/passwd
        "OMP_NUM_THREADS": str(slot.threads),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        MARK_VARIABLE: compute_mark(room.lab, room.folder),
    }


def compute_mark(lab: Path, folder: Path | None = None) -> str:
    """What a guest of a lab (and of a folder) is known by; it tells a guest nothing."""
    names = [str(lab), *([] if folder is None else [str(folder)])]
    return "/".join(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names)


def list_descendants(pid: int) -> list[psutil.Process]:
    """All of a process's; none when it has just exited (noticed elsewhere)."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def measure_tree_memory_gb(pid: int) -> float:
    """Resident memory of all descendants of a process; what they share counts twice."""
    total = 0
    for process in list_descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total / 1e9


def contents(folder: Path) -> tuple[int, int]:
    """(bytes, number) of all that is below a folder, up to one more than MOST_FILES.

    Files that vanish meanwhile count nothing.
    """
    size_bytes, files, waiting = 0, 0, [folder]
    while waiting and files <= MOST_FILES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                if files > MOST_FILES:
                    break
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        size_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
    return size_bytes, files


def remove_folder(folder: Path) -> None:
    """Remove a folder, whatever a guest made of it; what cannot go stays.

    Folders a thousand deep end `shutil.rmtree` in a RecursionError: here each is lifted
    to the top before it is emptied.
    """
    fresh = (folder / f"{uuid.uuid4().hex}-{n}" for n in itertools.count())
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError):
            place.chmod(0o700)
            with os.scandir(place) as entries:
                found = list(entries)
            for entry in found:
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                    elif place == folder:
                        waiting.append(Path(entry.path))
                    else:
                        waiting.append(Path(entry.path).rename(next(fresh)))
            if place != folder:
                place.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def sweep(lab: Path, folder: Path | None = None) -> int:
    """Kill what is left of a lab's guests, or of one; how many there were.

    Again and again until nothing new is found, as they may be forking.
    """
    found: set[int] = set()
    deadline = time.monotonic() + supervisor.GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        before = len(found)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and has_mark(process, lab, folder):
                    process.kill()
                    found.add(process.pid)
        if len(found) == before:
            break
    return len(found)


def has_mark(process: psutil.Process, lab: Path, folder: Path | None) -> bool:
    """Whether a process is a guest of this lab (and of this folder), or its warden."""
    seen = process.environ().get(MARK_VARIABLE, "")
    return seen == compute_mark(lab, folder) or (
        folder is None and seen.startswith(compute_mark(lab))
    )
