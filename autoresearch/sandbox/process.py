"""Start a sandboxed process, exchange messages with it, enforce limits, kill its tree.

Covered, with any sandbox backend:
- the whole process tree is killed, including processes that called setsid or forked
  twice, also when the harness is killed at any instruction (`supervisor`) and when the
  sandboxed process kills its supervisor
- an environment of a few named variables; no inherited file descriptors
- limits on memory, disk, log and messages, enforced from outside while it runs
- a log that is capped and cannot fill the disk

Not covered: what the process can see and reach, which is up to the backend handed in.
Without one (level `none`) these are open: the network; files that this user can read or
write elsewhere; memory that belongs to no process (a memfd, /dev/shm); a process that
kills its supervisor and then hides its environment.
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import psutil

from autoresearch.errors import RunStopped
from autoresearch.experiment import Device
from autoresearch.sandbox import supervisor
from autoresearch.sandbox.capped_log import CappedLog
from autoresearch.sandbox.ipc import Channel, ChannelClosed, Message
from autoresearch.sealed_memory import ProtocolError

ProcessRole = Literal["train", "serve"]  # what a sandboxed process is for

# Set in the environment of every sandboxed process, so that `sweep` finds it: a hash of
# its lab and one of its folder.
MARK_VARIABLE = "AUTORESEARCH_GUEST_OF"

# The writable part of a run's folder; see `measure.compile_cache`.
COMPILE_CACHE_FOLDER = ".compiled"
MAX_LOG_BYTES = 100 << 20
MAX_MESSAGES = 100_000
POLL_SECONDS = 0.05
CHECK_EVERY_SECONDS = 0.5  # memory and disk: a walk over the process tree
SEND_TIMEOUT_SECONDS = 5.0  # instant for a process that reads its messages
MAX_FILES = 100_000  # below its folder: empty files take no space, but time to list

# Passed on when set: where CUDA and shared libraries are found, and the locale.
PASSED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "LANG", "LC_ALL", "TZ")
# Threads that spin while they wait ran 8 to 16 times slower next to one busy process.
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
    """The process has exited; `exit_code` is negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.exit_code = code


class LimitExceeded(Exception):
    """The process exceeded one of its limits; the message says which."""

    def __init__(self, resource: str, detail: str) -> None:
        super().__init__(detail)
        self.resource = resource  # "memory" or "other"


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The limits of a sandboxed process, besides time."""

    memory_gb: float
    disk_gb: float = 4.0  # all files in its folder, and any single file
    log_bytes: int = MAX_LOG_BYTES


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a backend needs to know about one sandboxed process.

    `folder` holds train.py and whatever else it may read; only its subfolder
    COMPILE_CACHE_FOLDER may be written.
    """

    folder: Path
    lab: Path
    device: Device
    limits: ResourceLimits


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to start a process in its sandbox."""

    command_prefix: tuple[str, ...]  # the launcher's command line; () for none
    environment: Mapping[str, str]
    restrictions: str  # applied by the process itself; `SandboxRestrictions.to_json`
    descriptors: tuple[int, ...] = ()  # for the launcher; closed when it has started
    control_group: "ControlGroup | None" = None  # None: none is available


class ControlGroup(Protocol):
    """The control group of one sandboxed process."""

    @property
    def procs_files(self) -> tuple[str, ...]:
        """The cgroup.procs files through which a process joins."""
        ...

    @property
    def peak_memory_gb(self) -> float:
        """Peak of all memory, including memory that belongs to no process."""
        ...

    @property
    def is_oom_killed(self) -> bool:
        """Whether the kernel's OOM killer killed one of its processes."""
        ...

    def close(self) -> None:
        """Kill the remaining processes and remove the group."""
        ...


class SandboxBackend(Protocol):
    """How the processes of a session are isolated."""

    @property
    def level(self) -> str:
        """The level's name in program.md and in the ledger."""
        ...

    def build_launch_spec(self, spec: SandboxSpec) -> LaunchSpec:
        """Build the command line, environment and restrictions of one process."""
        ...


class Unsandboxed:
    """Level `none`: the process runs as this user, with a minimal environment."""

    level = "none"

    def build_launch_spec(self, spec: SandboxSpec) -> LaunchSpec:
        return LaunchSpec((), build_environment(spec), "")


class SandboxedProcess:
    """A sandboxed process tree. As a context manager: leaving it kills the tree."""

    def __init__(
        self,
        folder: Path,
        *,
        lab: Path,
        device: Device,
        limits: ResourceLimits,
        stop: "StopFlag",
        backend: SandboxBackend | None = None,
        code: str = RUNTIME_CODE,
        preload: tuple[str, ...] = (),
    ) -> None:
        """Start it. `preload` names modules to import before the first message."""
        self.folder = folder
        self.log = CappedLog()
        self.peak_memory_gb = 0.0  # of the whole tree, so far
        self.has_seen_held_out = False  # whether held-out data was sent to it
        self._lab = lab
        self._limits = limits
        self._stop = stop
        self._checked_at = 0.0
        self._check_seconds = 0.0  # how long the last check took
        self._message_count = 0
        self._exit_code: int | None = None  # None: it is running
        spec = SandboxSpec(folder, lab, device, limits)
        launch = (backend or Unsandboxed()).build_launch_spec(spec)
        self._control_group = launch.control_group
        self._has_launcher = bool(launch.command_prefix)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(SEND_TIMEOUT_SECONDS)  # it may never read
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._log_pipe, writes = os.pipe()
        os.set_blocking(self._log_pipe, False)
        link = str(theirs.fileno())
        command = (*PYTHON_COMMAND, code, link, launch.restrictions, *preload)
        self._process = spawn_supervisor(
            spec, launch, command, control.fileno(), theirs.fileno(), writes
        )
        for end in (theirs, control):
            end.close()
        for descriptor in (writes, *launch.descriptors):
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
        """Send a message; a process that has exited is noticed by `receive`.

        Raises ProtocolError where it does not read within SEND_TIMEOUT_SECONDS.
        """
        with contextlib.suppress(ChannelClosed):
            self.channel.send(message, *descriptors)

    def receive(self, deadline: float) -> tuple[Message, list[int]]:
        """Wait for the next message until `deadline` (time.monotonic).

        Returns it with its file descriptors. Raises TimeoutError, ProcessExited,
        LimitExceeded, RunStopped or ProtocolError.
        """
        while (received := self.channel.pop_message()) is None:
            if self._exit_code is not None:
                raise ProcessExited(self._exit_code)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._poll_inputs(min(left, POLL_SECONDS))
            self._check_limits_if_due(deadline)
        self._message_count += 1
        if self._message_count > MAX_MESSAGES:
            raise ProtocolError(f"more than {MAX_MESSAGES} messages")
        return received

    def receive_message(self, deadline: float) -> Message:
        """Like `receive`, but close any file descriptors that came with the message.

        Left open, a few per message would use up this process's descriptors.
        """
        message, descriptors = self.receive(deadline)
        for descriptor in descriptors:
            os.close(descriptor)
        return message

    def _poll_inputs(self, limit_seconds: float) -> None:
        """Read whatever arrives within this time: log, exit status or messages."""
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
        """Read a bounded part of the log, so that the deadline is still checked."""
        if self._log_pipe not in self._selector.get_map():
            return  # end of file was seen earlier
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
        """The supervisor reported exit; the process tree is gone."""
        status = self._control.recv(64).split()
        self._selector.unregister(self._control)
        self._exit_code = int(status[1]) if len(status) == 2 else -signal.SIGKILL
        if self._has_launcher and self._exit_code > 128:
            # A launcher reports death by signal n as 128 + n.
            self._exit_code = 128 - self._exit_code
        # What it sent and printed before it exited still counts, as far as the kernel
        # has buffered it. No more: a process that outlived a killed supervisor could
        # go on writing for ever.
        self._drain_log()
        self.channel.socket.setblocking(False)
        with contextlib.suppress(ChannelClosed, BlockingIOError):
            for _ in range(64):
                self.channel.fill_buffer()

    def _check_limits_if_due(self, deadline: float) -> None:
        """Check the tree's log, memory and disk against their limits.

        Memory and disk are skipped where the check could run past the deadline: the
        process can make it slow.
        """
        if self.log.total_bytes > self._limits.log_bytes:
            mb = self._limits.log_bytes / 1e6
            raise LimitExceeded("other", f"printed more than {mb:.0f} MB")
        now = time.monotonic()
        if now - self._checked_at < CHECK_EVERY_SECONDS + self._check_seconds:
            return
        if now + 2 * self._check_seconds > deadline:
            return
        self._check_limits()
        self._checked_at = time.monotonic()
        self._check_seconds = self._checked_at - now

    def _check_limits(self) -> None:
        """Check memory and disk; raise LimitExceeded."""
        self.update_peak_memory()
        if self.peak_memory_gb > self._limits.memory_gb:
            allowed = self._limits.memory_gb
            raise LimitExceeded("memory", f"took more than {allowed:g} GB of memory")
        size_bytes, files = measure_folder(self.folder)
        if files > MAX_FILES:
            raise LimitExceeded("other", f"made more than {MAX_FILES} files")
        if size_bytes > self._limits.disk_gb * 1e9:
            allowed = self._limits.disk_gb
            raise LimitExceeded("other", f"wrote more than {allowed:g} GB to disk")

    def update_peak_memory(self) -> None:
        """Measure the tree's memory now."""
        counted = self._control_group.peak_memory_gb if self._control_group else 0.0
        self.peak_memory_gb = max(
            self.peak_memory_gb, counted or measure_tree_memory_gb(self._process.pid)
        )

    @property
    def is_running(self) -> bool:
        """Whether the process tree is still running."""
        return self._process.poll() is None

    def list_pids(self) -> set[int]:
        """The pids of its current processes, in this process's pid namespace."""
        return {process.pid for process in list_descendants(self._process.pid)}

    @property
    def is_oom_killed(self) -> bool:
        """Whether the kernel's OOM killer killed one of its processes."""
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
            sweep(self._lab, self.folder)  # its supervisor died before it could
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
    """Give a thread of the harness real-time priority, where allowed (root, Linux).

    Spinning processes on two busy cores delayed the harness's deadline by 40 ms. A
    scheduling policy chosen by the user is kept. Returns whether it was changed.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                rank = os.SCHED_RR | os.SCHED_RESET_ON_FORK
                os.sched_setscheduler(thread, rank, os.sched_param(1))
                return True
    return False


def restore_thread_priority(thread: int) -> None:
    """Undo `raise_thread_priority`."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def spawn_supervisor(
    spec: SandboxSpec,
    launch: LaunchSpec,
    command: tuple[str, ...],
    control: int,
    link: int,
    log: int,
) -> subprocess.Popen[bytes]:
    """Start the supervisor, which starts the launcher, which starts the process."""
    passed = (link, *launch.descriptors)
    procs_files = launch.control_group.procs_files if launch.control_group else ()
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", "-B", supervisor.__file__, str(control)),
            *(",".join(map(str, passed)), str(int(spec.limits.disk_gb * 1e9))),
            *(":".join(procs_files), *launch.command_prefix, *command),
        ],
        cwd=spec.folder,
        env=launch.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(control, *passed),
        start_new_session=True,
    )


class StopFlag:
    """A user's request to stop: `soon` after the current run, `now` without it."""

    def __init__(self) -> None:
        self.soon = False
        self.now = False


def build_environment(spec: SandboxSpec, home: str | None = None) -> dict[str, str]:
    """Build the whole environment of a sandboxed process."""
    device = spec.device
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    home = home or str(spec.folder)
    visible = device.uuid or ("" if device.index is None else str(device.index))
    variable = "ROCR_VISIBLE_DEVICES" if device.device_file else "CUDA_VISIBLE_DEVICES"
    gpu = {variable: visible} if visible else {}
    return {
        **passed,
        **THREAD_VARIABLES,
        **gpu,
        "HOME": home,
        "TMPDIR": home,
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/{COMPILE_CACHE_FOLDER}",
        "USER": "guest",  # torch names its caches by it; there may be no /etc/passwd
        "OMP_NUM_THREADS": str(device.threads),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        MARK_VARIABLE: compute_mark(spec.lab, spec.folder),
    }


def compute_mark(lab: Path, folder: Path | None = None) -> str:
    """Hash a lab (and a folder) into a mark that reveals neither path."""
    names = [str(lab), *([] if folder is None else [str(folder)])]
    return "/".join(hashlib.sha256(name.encode()).hexdigest()[:16] for name in names)


def list_descendants(pid: int) -> list[psutil.Process]:
    """All descendants of a process; none where it has just exited."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def measure_tree_memory_gb(pid: int) -> float:
    """Resident memory of all descendants in GB; shared pages count more than once."""
    total_bytes = 0
    for process in list_descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total_bytes += process.memory_info().rss
    return total_bytes / 1e9


def measure_folder(folder: Path) -> tuple[int, int]:
    """Count (bytes on disk, entries) below a folder; stops after MAX_FILES + 1 entries.

    Files that vanish meanwhile are not counted.
    """
    size_bytes, files, waiting = 0, 0, [folder]
    while waiting and files <= MAX_FILES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                if files > MAX_FILES:
                    break
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        size_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
    return size_bytes, files


def remove_folder(folder: Path) -> None:
    """Remove a folder that untrusted code has written; what cannot be removed stays.

    `shutil.rmtree` raises RecursionError on folders nested a thousand deep: here each
    is moved to the top before it is emptied.
    """
    fresh_paths = (folder / f"{uuid.uuid4().hex}-{n}" for n in itertools.count())
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError):
            place.chmod(0o700)
            with os.scandir(place) as entries:
                listed = list(entries)
            for entry in listed:
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                    elif place == folder:
                        waiting.append(Path(entry.path))
                    else:
                        waiting.append(Path(entry.path).rename(next(fresh_paths)))
            if place != folder:
                place.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def sweep(lab: Path, folder: Path | None = None) -> int:
    """Kill the remaining processes of a lab, or of one folder; return their number.

    Found by their environment, and searched again until none is new: they may fork.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + supervisor.GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        before = len(killed)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and has_mark(process, lab, folder):
                    process.kill()
                    killed.add(process.pid)
        if len(killed) == before:
            break
    return len(killed)


def has_mark(process: psutil.Process, lab: Path, folder: Path | None) -> bool:
    """Whether a process, or its supervisor, belongs to this lab (and this folder)."""
    mark = process.environ().get(MARK_VARIABLE, "")
    return mark == compute_mark(lab, folder) or (
        folder is None and mark.startswith(compute_mark(lab))
    )
