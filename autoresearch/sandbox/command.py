"""Run an untrusted command with a time limit, and kill every process it started.

Promises: no shell; only the given environment; stdin in one piece (`run_command`) or
during a conversation (`run_interactive`); output kept up to a size; at the limit, at
`stop`, or when this process dies, the whole tree is killed, including processes that
called setsid (`supervisor`). With bubblewrap, the disk is read-only except for the
given folders, and hidden paths appear empty.

Not covered: the network, which a coding agent needs; without bubblewrap (off Linux),
all files that this user may read or write.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Protocol

from autoresearch.sandbox import supervisor

MAX_OUTPUT_BYTES = 64 << 20  # a command that prints more is killed
KEPT_OUTPUT_BYTES = 2 << 20  # the end of its output
MAX_FILE_BYTES = 4 << 30
POLL_SECONDS = 0.1
EXIT_GRACE_SECONDS = 3.0  # for a command to exit by itself after its stdin was closed
TEMPORARY_FOLDER = Path("/tmp")  # noqa: S108  (programs use it despite TMPDIR)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code, output and duration of a command."""

    exit_code: int | None  # None: killed, at a limit or because of `stop`
    output: bytes  # the end of stdout and stderr
    seconds: float

    @property
    def text(self) -> str:
        """The output as text, with control characters: not safe to print."""
        return self.output.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class FilesystemAccess:
    """Which paths a command may write, and which it must not see."""

    writable: tuple[Path, ...]
    hidden: tuple[Path, ...] = ()


class InteractiveClient(Protocol):
    """The other side of a conversation with a command. Never blocks."""

    @property
    def is_finished(self) -> bool:
        """Whether the conversation is over."""
        ...

    def feed_stdout(self, printed: bytes) -> None:
        """Receive what the command printed on stdout."""
        ...

    def feed_stderr(self, printed: bytes) -> None:
        """Receive what the command printed on stderr."""
        ...

    def pending_input(self) -> bytearray:
        """The bytes still to send; the caller deletes what it has sent."""
        ...


CommandProcess = subprocess.Popen[bytes]


def run_command(
    argv: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    words: bytes,
    limit_seconds: float,
    access: FilesystemAccess,
    stop: Callable[[], bool],
) -> CommandResult:
    """Run a command in `folder` with `words` on stdin.

    Raises FileNotFoundError where the program is absent.
    """
    input_path = folder.parent / "stdin"
    input_path.write_bytes(words)
    started = time.monotonic()
    with (
        input_path.open("rb") as stdin,
        start_command(argv, folder, env, access, stdin, subprocess.STDOUT) as (
            process,
            control,
        ),
    ):
        code, output = collect_output(process, control, started + limit_seconds, stop)
    return CommandResult(code, output, time.monotonic() - started)


def run_interactive(
    argv: Sequence[str],
    partner: InteractiveClient,
    *,
    folder: Path,
    env: Mapping[str, str],
    limit_seconds: float,
    access: FilesystemAccess,
    stop: Callable[[], bool],
) -> int | None:
    """Run a command until its partner is finished; return its exit code.

    None: it was killed. Raises FileNotFoundError where the program is absent.
    """
    deadline = time.monotonic() + limit_seconds
    pipe = subprocess.PIPE
    with start_command(argv, folder, env, access, pipe, pipe) as (process, control):
        code = relay_messages(process, control, deadline, stop, partner)
        if code is None and partner.is_finished and not stop():
            assert process.stdin is not None
            process.stdin.close()
            select.select([control.fileno()], [], [], EXIT_GRACE_SECONDS)
            return 0
    return code


@contextmanager
def start_command(
    argv: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    access: FilesystemAccess,
    stdin: IO[bytes] | int,
    stderr: int,
) -> Iterator[tuple[CommandProcess, socket.socket]]:
    """Start a sandboxed command; yield it and the supervisor's socket.

    On exit its whole process tree is killed.
    """
    program = shutil.which(argv[0], path=env.get("PATH"))
    if program is None:
        raise FileNotFoundError(argv[0])
    command = [
        *build_bubblewrap_prefix(access, folder, (program, *argv)),
        program,
        *argv[1:],
    ]
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    keep = os.open(os.devnull, os.O_RDONLY)
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-B", supervisor.__file__),
                *(str(control.fileno()), str(keep), str(MAX_FILE_BYTES), ""),
                *command,
            ],
            cwd=folder,
            env=dict(env),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=(control.fileno(), keep),
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(keep)
        control.close()
    try:
        yield process, ours
    finally:
        ours.close()  # the supervisor kills everything when this end closes
        wait_and_close(process)


def relay_messages(
    process: CommandProcess,
    control: socket.socket,
    deadline: float,
    stop: Callable[[], bool],
    partner: InteractiveClient,
) -> int | None:
    """Relay messages both ways until either side ends.

    Returns the exit code; None where the command has not exited.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdin, out, err = (
        f.fileno() for f in (process.stdin, process.stdout, process.stderr)
    )
    for pipe in (stdin, out, err):
        os.set_blocking(pipe, False)
    feeds = {out: partner.feed_stdout, err: partner.feed_stderr}
    open_pipes, total = {out, err}, 0
    while time.monotonic() < deadline and not stop() and not partner.is_finished:
        pending = partner.pending_input()
        ready, free, _ = select.select(
            [*open_pipes, control.fileno()],
            [stdin] if pending else [],
            [],
            POLL_SECONDS,
        )
        if free and not write_available(stdin, pending):
            return read_exit_code(control)
        for pipe in sorted(open_pipes & set(ready)):
            printed = os.read(pipe, 1 << 16)
            total += len(printed)
            feeds[pipe](printed)
            if not printed:
                open_pipes.discard(pipe)
        if total > MAX_OUTPUT_BYTES:
            return None
        if control.fileno() in ready:
            for pipe in sorted(open_pipes):
                feeds[pipe](read_remaining(pipe))
            return read_exit_code(control)
    return None


def write_available(pipe: int, pending: bytearray) -> bool:
    """Write as much as fits and delete it; False where the reading end is closed."""
    try:
        del pending[: os.write(pipe, pending[: 1 << 16])]
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False
    return True


def read_exit_code(control: socket.socket) -> int | None:
    """The exit code that the supervisor reports; None where no report comes in time."""
    ready, _, _ = select.select([control], [], [], EXIT_GRACE_SECONDS)
    if not ready:
        return None
    status = control.recv(64).split()
    return int(status[1]) if len(status) == 2 else -signal.SIGKILL


def collect_output(
    process: CommandProcess,
    control: socket.socket,
    deadline: float,
    stop: Callable[[], bool],
) -> tuple[int | None, bytes]:
    """Read the output until the command exits: (exit code, the end of the output).

    The exit code is None at the deadline, at `stop` or after too much output.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    kept, total = bytearray(), 0
    while time.monotonic() < deadline and not stop():
        ready, _, _ = select.select([pipe, control.fileno()], [], [], POLL_SECONDS)
        if pipe in ready:
            printed = os.read(pipe, 1 << 16)
            total += len(printed)
            kept += printed
            del kept[:-KEPT_OUTPUT_BYTES]
            if total > MAX_OUTPUT_BYTES:
                return None, bytes(kept)
            if not printed:
                time.sleep(POLL_SECONDS / 10)  # closed; the exit code follows
        if control.fileno() in ready:
            return read_exit_code(control), bytes(kept + read_remaining(pipe))
    return None, bytes(kept)


def read_remaining(pipe: int) -> bytes:
    """Read the remaining bytes of a pipe after its writer has exited."""
    try:
        return os.read(pipe, 1 << 20)
    except BlockingIOError:
        return b""


def wait_and_close(process: CommandProcess) -> None:
    """Wait until the supervisor has killed everything; then close the pipes."""
    try:
        process.wait(supervisor.GIVE_UP_SECONDS + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def build_bubblewrap_prefix(
    access: FilesystemAccess, folder: Path, arguments: Sequence[str]
) -> list[str]:
    """The bubblewrap command line to put before a command; [] where it is unusable.

    /tmp is private and empty, except for folders in it that the arguments name.
    """
    program = find_bubblewrap()
    if not program:
        return []
    tops = {
        top
        for argument in arguments
        if (top := find_top_entry(TEMPORARY_FOLDER, argument)) is not None
    }
    shown = [w for top in sorted(tops) for w in ("--ro-bind", str(top), str(top))]
    binds = [
        word for path in access.writable for word in ("--bind", str(path), str(path))
    ]
    hidden = [
        word
        for path in access.hidden
        if path.exists()
        for word in (
            ("--tmpfs", str(path))
            if path.is_dir()
            else ("--ro-bind", os.devnull, str(path))
        )
    ]
    return [
        *(program, "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev"),
        *("--proc", "/proc", "--tmpfs", str(TEMPORARY_FOLDER), "--unshare-pid"),
        *(*shown, *hidden, *binds, "--chdir", str(folder), "--"),
    ]


def find_top_entry(folder: Path, argument: str) -> Path | None:
    """The folder's entry that an argument lies in or below; None: no such path."""
    path = Path(argument)
    if not path.is_absolute() or folder not in path.parents or not path.exists():
        return None
    return folder / path.relative_to(folder).parts[0]


@cache
def find_bubblewrap() -> str:
    """The path of bubblewrap; "" where it is absent or may not create namespaces."""
    program = shutil.which("bwrap")
    if program is None:
        return ""
    trial = [program, "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    done = subprocess.run(trial, capture_output=True, timeout=20)
    return program if done.returncode == 0 else ""
