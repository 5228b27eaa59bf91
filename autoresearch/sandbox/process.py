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

from autoresearch.errors import Stopped
from autoresearch.experiment import Slot
from autoresearch.sandbox import supervisor
from autoresearch.sandbox.ipc import Channel, Closed, Message
from autoresearch.sealed_memory import Junk

Task = Literal["train", "serve"]  # what a guest is there for

# In every guest's environment, for sweeping: a name of its lab and one of its folder.
MARK = "AUTORESEARCH_GUEST_OF"

LOG_HEAD_BYTES, LOG_TAIL_BYTES = 32 * 1024, 64 * 1024
COMPILED = ".compiled"  # what of a run's folder it may write; see `compiled`
LARGEST_LOG_BYTES = 100 << 20
MOST_MESSAGES = 100_000
TICK_SECONDS = 0.05
LOOK_EVERY_SECONDS = 0.5  # at memory and disk: a walk over the process tree
SEND_SECONDS = 5.0  # for the kernel to take a message; a guest that reads takes none
MOST_FILES = 100_000  # below its folder: empty ones take no space, but time to list

# Passed on to guests when set: where CUDA and shared libraries are found, and language.
ALLOWED = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "LANG", "LC_ALL", "TZ")
# Threads that spin while they wait ran 8 to 16 times slower beside one busy neighbour.
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

GUEST_PYTHON = (sys.executable, "-I", "-B", "-u", "-c")
GUEST = (
    "import sys; from autoresearch.guest.runtime import main;"
    " main(int(sys.argv[1]), *sys.argv[2:])"
)


class Exited(Exception):
    """The guest is gone. `code` is its exit code, negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class OverLimit(Exception):
    """The guest took more than it may have; the message says of what."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(detail)
        self.what = what  # "memory" or "other"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guest may take besides time."""

    memory_gb: float
    disk_gb: float = 4.0  # in its folder, and the largest single file
    log_bytes: int = LARGEST_LOG_BYTES


@dataclass(frozen=True, slots=True)
class Room:
    """What one guest is given. Its folder holds train.py and what else it may read;

    what lies in its folder COMPILED it may write, too.
    """

    folder: Path
    lab: Path
    slot: Slot
    limits: Limits


@dataclass(frozen=True, slots=True)
class Entry:
    """How a guest is started behind walls."""

    before: tuple[str, ...]  # the words of a command line that puts the walls up
    environment: Mapping[str, str]
    fence: str  # what the guest forbids itself; see `fence.Fence.words`
    descriptors: tuple[int, ...] = ()  # for the command; closed when it has started
    group: "Group | None" = None  # what the kernel counts and limits it by


class Group(Protocol):
    """A control group that one guest lives in."""

    @property
    def joins(self) -> tuple[str, ...]:
        """Files that the guest's first process writes itself into."""
        ...

    @property
    def memory_gb(self) -> float:
        """Peak of all memory, also of what is in no process."""
        ...

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed something of it for its memory."""
        ...

    def close(self) -> None:
        """Kill what is left in it and remove it."""
        ...


class Walls(Protocol):
    """What stands around every guest of a night."""

    @property
    def level(self) -> str:
        """Its name in program.md and in every row."""
        ...

    def entry(self, room: Room) -> Entry:
        """The way in, for one guest."""
        ...


class NoWalls:
    """Level `none`: the guest runs as this user, with a bare environment."""

    level = "none"

    def entry(self, room: Room) -> Entry:
        return Entry((), environment(room), "")


class Log:
    """The first and the last of what a guest printed, and how much there was."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    def add(self, printed: bytes) -> None:
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

    def whole(self) -> bytes:
        """Head and tail, with a line that says what is missing between them."""
        tail = b"".join(self._tail)
        missing = self.total_bytes - len(self._head) - len(tail)
        gap = b"\n[... %d bytes not kept ...]\n" % missing if missing > 0 else b""
        return bytes(self._head) + gap + tail


class Guest:
    """One caged process tree. Use as a context manager: leaving it kills everything."""

    def __init__(
        self,
        folder: Path,
        *,
        lab: Path,
        slot: Slot,
        limits: Limits,
        stop: "Stop",
        walls: Walls | None = None,
        code: str = GUEST,
        ahead: tuple[str, ...] = (),
    ) -> None:
        """ahead: modules to import before it is told anything."""
        self.folder = folder
        self.log = Log()
        self.memory_gb = 0.0  # peak of the tree so far
        self.asked = False  # whether it has been shown held-out data
        self._lab = lab
        self._limits = limits
        self._stop = stop
        self._looked = 0.0
        self._look_seconds = 0.0  # what the last look took
        self._messages = 0
        self._code: int | None = None  # None: it is running
        room = Room(folder, lab, slot, limits)
        entry = (walls or NoWalls()).entry(room)
        self._group = entry.group
        self._launched = bool(entry.before)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(SEND_SECONDS)  # one that never reads must not hold up a night
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reads, writes = os.pipe()
        os.set_blocking(self._reads, False)
        command = (*GUEST_PYTHON, code, str(theirs.fileno()), entry.fence, *ahead)
        self._process = start(
            room, entry, command, control.fileno(), theirs.fileno(), writes
        )
        for end in (theirs, control):
            end.close()
        for descriptor in (writes, *entry.descriptors):
            os.close(descriptor)
        self._thread = threading.get_native_id()
        self._urgent = urgent(self._thread)
        self.channel = Channel(ours)
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ, "channel")
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        self._selector.register(self._reads, selectors.EVENT_READ, "log")

    def __enter__(self) -> "Guest":
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
        with contextlib.suppress(Closed):
            self.channel.send(message, *descriptors)

    def receive(self, deadline: float) -> tuple[Message, list[int]]:
        """The guest's next message by `deadline` (time.monotonic).

        Raises TimeoutError, Exited, OverLimit, Stopped or Junk.
        """
        while (found := self.channel.take()) is None:
            if self._code is not None:
                raise Exited(self._code)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._pump(min(left, TICK_SECONDS))
            self._look(deadline)
        self._messages += 1
        if self._messages > MOST_MESSAGES:
            raise Junk(f"more than {MOST_MESSAGES} messages")
        return found

    def hear(self, deadline: float) -> Message:
        """`receive` where no descriptor belongs: what it sends all the same is closed.

        Kept open, a few a message would be more than this process may have.
        """
        message, descriptors = self.receive(deadline)
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _pump(self, limit_seconds: float) -> None:
        """Take in whatever arrives next, for at most this long."""
        if self._stop.now:
            raise Stopped
        for key, _ in self._selector.select(limit_seconds):
            if key.data == "log":
                self._drain()
            elif key.data == "control":
                self._exited()
            elif self._code is None:
                try:
                    self.channel.read()
                except Closed:
                    self._selector.unregister(self.channel.socket)

    def _drain(self) -> None:
        """Read the log for a while; never for ever, the clock must be looked at."""
        if self._reads not in self._selector.get_map():
            return  # it ended earlier
        for _ in range(64):
            try:
                printed = os.read(self._reads, 1 << 16)
            except BlockingIOError:
                return
            if not printed:
                self._selector.unregister(self._reads)
                return
            self.log.add(printed)

    def _exited(self) -> None:
        """The warden has spoken: the guest is gone, and all it started."""
        words = self._control.recv(64).split()
        self._selector.unregister(self._control)
        self._code = int(words[1]) if len(words) == 2 else -signal.SIGKILL
        if self._launched and self._code > 128:
            self._code = 128 - self._code  # how a launcher passes a signal on
        # What it sent and printed before it left still counts, as much as the kernel
        # holds. Not more: what survives a dead warden could go on for ever.
        self._drain()
        self.channel.socket.setblocking(False)
        with contextlib.suppress(Closed, BlockingIOError):
            for _ in range(64):
                self.channel.read()

    def _look(self, deadline: float) -> None:
        """Compare the tree's memory, disk and log with what it may have.

        Not where that could go on past the deadline: a guest can make looking slow.
        """
        if self.log.total_bytes > self._limits.log_bytes:
            mb = self._limits.log_bytes / 1e6
            raise OverLimit("other", f"printed more than {mb:.0f} MB")
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_SECONDS + self._look_seconds:
            return
        if now + 2 * self._look_seconds > deadline:
            return
        self._compare()
        self._looked = time.monotonic()
        self._look_seconds = self._looked - now

    def _compare(self) -> None:
        """Memory and disk against their limits."""
        self.measure()
        if self.memory_gb > self._limits.memory_gb:
            allowed = self._limits.memory_gb
            raise OverLimit("memory", f"took more than {allowed:g} GB of memory")
        size_bytes, files = contents(self.folder)
        if files > MOST_FILES:
            raise OverLimit("other", f"made more than {MOST_FILES} files")
        if size_bytes > self._limits.disk_gb * 1e9:
            allowed = self._limits.disk_gb
            raise OverLimit("other", f"wrote more than {allowed:g} GB to disk")

    def measure(self) -> None:
        """Look at the tree's memory now."""
        counted = self._group.memory_gb if self._group else 0.0
        self.memory_gb = max(
            self.memory_gb, counted or tree_memory_gb(self._process.pid)
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def pids(self) -> set[int]:
        """Its processes at this moment, as this namespace numbers them."""
        return {process.pid for process in descendants(self._process.pid)}

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel ended something of it for want of memory."""
        return self._group is not None and self._group.out_of_memory

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
        if self._group is not None:
            self._group.close()
        if self._reads >= 0:
            with contextlib.suppress(OSError, ValueError):
                self._drain()
            self._selector.close()
            os.close(self._reads)
            self._reads = -1
        self.channel.close()
        if self._urgent:
            usual(self._thread)
            self._urgent = False


def urgent(thread: int) -> bool:
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


def usual(thread: int) -> None:
    """Take that back."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def start(
    room: Room,
    entry: Entry,
    command: tuple[str, ...],
    control: int,
    link: int,
    log: int,
) -> subprocess.Popen[bytes]:
    """The warden, which starts the launcher, which starts the guest."""
    given = (link, *entry.descriptors)
    joins = entry.group.joins if entry.group else ()
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", "-B", supervisor.__file__, str(control)),
            *(",".join(map(str, given)), str(int(room.limits.disk_gb * 1e9))),
            *(":".join(joins), *entry.before, *command),
        ],
        cwd=room.folder,
        env=entry.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(control, *given),
        start_new_session=True,
    )


class Stop:
    """A human's wish to end: `soon` after the run in hand, `now` without it."""

    def __init__(self) -> None:
        self.soon = False
        self.now = False


def environment(room: Room, home: str | None = None) -> dict[str, str]:
    """All a guest gets to see of the world's variables."""
    slot = room.slot
    passed = {name: os.environ[name] for name in ALLOWED if name in os.environ}
    where = home or str(room.folder)
    visible = slot.uuid or ("" if slot.index is None else str(slot.index))
    variable = "ROCR_VISIBLE_DEVICES" if slot.node else "CUDA_VISIBLE_DEVICES"
    card = {variable: visible} if visible else {}
    return {
        **passed,
        **THREADS,
        **card,
        "HOME": where,
        "TMPDIR": where,
        "TORCHINDUCTOR_CACHE_DIR": f"{where}/{COMPILED}",
        "USER": "guest",  # torch names its caches by it; there may be no /etc/passwd
        "OMP_NUM_THREADS": str(slot.threads),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        MARK: mark(room.lab, room.folder),
    }


def mark(lab: Path, folder: Path | None = None) -> str:
    """What a guest of a lab (and of a folder) is known by; it tells a guest nothing."""
    names = [str(lab), *([] if folder is None else [str(folder)])]
    return "/".join(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names)


def descendants(pid: int) -> list[psutil.Process]:
    """All of a process's; none when it has just exited (noticed elsewhere)."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def tree_memory_gb(pid: int) -> float:
    """Resident memory of all descendants of a process; what they share counts twice."""
    total = 0
    for process in descendants(pid):
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


def erase(folder: Path) -> None:
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
                if process.pid != os.getpid() and belongs(process, lab, folder):
                    process.kill()
                    found.add(process.pid)
        if len(found) == before:
            break
    return len(found)


def belongs(process: psutil.Process, lab: Path, folder: Path | None) -> bool:
    """Whether a process is a guest of this lab (and of this folder), or its warden."""
    seen = process.environ().get(MARK, "")
    return seen == mark(lab, folder) or (folder is None and seen.startswith(mark(lab)))
