"""Run a command that may do anything within a time limit, and kill all it started.

Promises: no shell; the environment that was given and nothing else; input by stdin, at
once (`run`) or as a talk goes on (`talk`); output read and kept up to a size; at the
limit, at `stop`, or when this process dies, the whole tree is dead, also what called
setsid (`warden`). With bubblewrap, all of the disk but the given folders is read-only
and what is named as hidden is empty.

Not covered: the network, which a coding agent needs; without bubblewrap (off Linux),
files that this user may read or write anywhere.
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

MAX_OUTPUT_BYTES = 64 << 20  # more than that and it is stopped
KEPT_OUTPUT_BYTES = 2 << 20  # of its end
MAX_FILE_BYTES = 4 << 30
POLL_SECONDS = 0.1
EXIT_GRACE_SECONDS = (
    3.0  # for a command to end by itself when nobody talks to it any more
)
TEMPORARY_FOLDER = Path("/tmp")  # noqa: S108  (programs write there, whatever TMPDIR says)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command came to its end."""

    exit_code: int | None  # None: it was killed, at its limit or because we stop
    output: bytes  # stdout and stderr, the end of it
    seconds: float

    @property
    def text(self) -> str:
        """The output as text; not yet safe to print."""
        return self.output.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class FilesystemAccess:
    """What of the disk a command may write, and what it must not see."""

    writable: tuple[Path, ...]
    hidden: tuple[Path, ...] = ()


class InteractiveClient(Protocol):
    """Whom a command talks with. Never waits."""

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to say."""
        ...

    def feed_stdout(self, said: bytes) -> None:
        """Take what it printed on stdout."""
        ...

    def feed_stderr(self, said: bytes) -> None:
        """Take what it printed on stderr."""
        ...

    def pending_input(self) -> bytearray:
        """What is to be sent; what has been is deleted from it."""
        ...


CommandProcess = subprocess.Popen[bytes]


def run_command(
    argv: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    words: bytes,
    limit_seconds: float,
    walls: FilesystemAccess,
    stop: Callable[[], bool],
) -> CommandResult:
    """Run it in the folder with `words` on stdin; FileNotFoundError if it is absent."""
    said_path = folder.parent / "stdin"
    said_path.write_bytes(words)
    begun = time.monotonic()
    with (
        said_path.open("rb") as said,
        start_command(argv, folder, env, walls, said, subprocess.STDOUT) as (
            process,
            ours,
        ),
    ):
        code, output = collect_output(process, ours, begun + limit_seconds, stop)
    return CommandResult(code, output, time.monotonic() - begun)


def run_interactive(
    argv: Sequence[str],
    partner: InteractiveClient,
    *,
    folder: Path,
    env: Mapping[str, str],
    limit_seconds: float,
    walls: FilesystemAccess,
    stop: Callable[[], bool],
) -> int | None:
    """Run it while its partner has something to say; its exit code, None: killed."""
    deadline = time.monotonic() + limit_seconds
    pipe = subprocess.PIPE
    with start_command(argv, folder, env, walls, pipe, pipe) as (process, ours):
        code = relay_messages(process, ours, deadline, stop, partner)
        if code is None and partner.is_finished and not stop():
            assert process.stdin is not None
            process.stdin.close()
            select.select([ours.fileno()], [], [], EXIT_GRACE_SECONDS)
            return 0
    return code


@contextmanager
def start_command(
    argv: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    walls: FilesystemAccess,
    stdin: IO[bytes] | int,
    stderr: int,
) -> Iterator[tuple[CommandProcess, socket.socket]]:
    """The command behind its walls, and the warden's line; all is dead afterwards."""
    program = shutil.which(argv[0], path=env.get("PATH"))
    if program is None:
        raise FileNotFoundError(argv[0])
    command = [
        *build_bubblewrap_prefix(walls, folder, (program, *argv)),
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
        ours.close()  # the warden kills everything when this end closes
        wait_and_close(process)


def relay_messages(
    process: CommandProcess,
    control: socket.socket,
    deadline: float,
    stop: Callable[[], bool],
    partner: InteractiveClient,
) -> int | None:
    """Pass words on, both ways, until one has enough; None: it did not exit."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    to, out, err = (f.fileno() for f in (process.stdin, process.stdout, process.stderr))
    for pipe in (to, out, err):
        os.set_blocking(pipe, False)
    ears = {out: partner.feed_stdout, err: partner.feed_stderr}
    open_pipes, total = {out, err}, 0
    while time.monotonic() < deadline and not stop() and not partner.is_finished:
        words = partner.pending_input()
        ready, free, _ = select.select(
            [*open_pipes, control.fileno()], [to] if words else [], [], POLL_SECONDS
        )
        if free and not write_available(to, words):
            return read_exit_code(control)
        for pipe in sorted(open_pipes & set(ready)):
            printed = os.read(pipe, 1 << 16)
            total += len(printed)
            ears[pipe](printed)
            if not printed:
                open_pipes.discard(pipe)
        if total > MAX_OUTPUT_BYTES:
            return None
        if control.fileno() in ready:
            for pipe in sorted(open_pipes):
                ears[pipe](read_remaining(pipe))
            return read_exit_code(control)
    return None


def write_available(pipe: int, words: bytearray) -> bool:
    """Send as much as fits, and delete it; False when nobody reads any more."""
    try:
        del words[: os.write(pipe, words[: 1 << 16])]
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False
    return True


def read_exit_code(control: socket.socket) -> int | None:
    """What the warden says of the command's end; None when it says nothing in time."""
    ready, _, _ = select.select([control], [], [], EXIT_GRACE_SECONDS)
    if not ready:
        return None
    words = control.recv(64).split()
    return int(words[1]) if len(words) == 2 else -signal.SIGKILL


def collect_output(
    process: CommandProcess,
    control: socket.socket,
    deadline: float,
    stop: Callable[[], bool],
) -> tuple[int | None, bytes]:
    """Read what it prints until it ends; (exit code or None, the end of the output)."""
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
                time.sleep(POLL_SECONDS / 10)  # closed; the warden speaks next
        if control.fileno() in ready:
            return read_exit_code(control), bytes(kept + read_remaining(pipe))
    return None, bytes(kept)


def read_remaining(pipe: int) -> bytes:
    """What is left in a pipe nobody writes to any more."""
    try:
        return os.read(pipe, 1 << 20)
    except BlockingIOError:
        return b""


def wait_and_close(process: CommandProcess) -> None:
    """Wait until the warden has killed everything; then close."""
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
    walls: FilesystemAccess, folder: Path, words: Sequence[str]
) -> list[str]:
    """bubblewrap around a command; nothing where it cannot be used.

    /tmp is an empty one of its own, but for the folders that the command's words name.
    """
    program = find_bubblewrap()
    if not program:
        return []
    tops = {
        top
        for word in words
        if (top := find_top_entry(TEMPORARY_FOLDER, word)) is not None
    }
    shown = [w for top in sorted(tops) for w in ("--ro-bind", str(top), str(top))]
    binds = [
        word for path in walls.writable for word in ("--bind", str(path), str(path))
    ]
    hidden = [
        word
        for path in walls.hidden
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


def find_top_entry(folder: Path, word: str) -> Path | None:
    """The entry of a folder that a word's path leads through; None: it does not."""
    path = Path(word)
    if not path.is_absolute() or folder not in path.parents or not path.exists():
        return None
    return folder / path.relative_to(folder).parts[0]


@cache
def find_bubblewrap() -> str:
    """Where bubblewrap is; "" where it is absent or may not make namespaces."""
    program = shutil.which("bwrap")
    if program is None:
        return ""
    trial = [program, "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    done = subprocess.run(trial, capture_output=True, timeout=20)
    return program if done.returncode == 0 else ""
