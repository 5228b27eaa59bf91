"""The one process between harness and guest: starts it, waits, then kills everything.

    python -I -S -B warden.py CONTROL KEEP,KEEP FILE_BYTES COMMAND...

CONTROL is a socket to the harness. When it closes (the harness hung up, or died at any
instruction) or when the guest's first process exits, every process the guest ever
started is killed: children of dead parents are handed to this process by the kernel
(PR_SET_CHILD_SUBREAPER), so setsid and double forks do not escape. On exit it writes
`exited CODE` to CONTROL, a signal as a negative code.

Not covered: a guest of the same user that kills the warden itself (the harness sweeps
for survivors by a mark in their environment); off Linux, only the process group.
Standard library only, and no import of the package: it is on every run's start-up path.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36
GIVE_UP_SECONDS = 5.0


def main() -> None:
    control, keep = int(sys.argv[1]), [int(fd) for fd in sys.argv[2].split(",")]
    file_bytes, command = int(sys.argv[3]), sys.argv[4:]
    adopt_orphans()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    guest = os.fork()
    if guest == 0:
        become(command, keep, file_bytes)
    for descriptor in keep:
        os.close(descriptor)  # else the harness would never see the guest hang up
    code = wait(guest, control, woken)
    kill_everything(guest)
    with suppress(OSError):  # the harness is gone; there is nobody to tell
        os.write(control, f"exited {code}\n".encode())


def adopt_orphans() -> None:
    """Make this process the parent of every orphaned descendant (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become(command: list[str], keep: list[int], file_bytes: int) -> None:
    """In the child: limits, a session of its own, then the guest."""
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # When memory runs out, take the guest first. Only Linux has the file.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execv(command[0], command)


def wait(guest: int, control: int, woken: int) -> int:
    """Until the guest exits or the harness hangs up; its exit code."""
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if control in ready:
            return -signal.SIGKILL
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        code = reap(guest)
        if code is not None:
            return code


def reap(guest: int) -> int | None:
    """Collect every dead child; the guest's exit code if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == guest:
            found = os.waitstatus_to_exitcode(status)


def kill_everything(guest: int) -> None:
    """Kill children until there are none; orphans of the killed become children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(guest, signal.SIGKILL)
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        for pid in children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.001)


def children() -> list[int]:
    """The present children of this process (Linux; elsewhere none are known)."""
    me, found = os.getpid(), []
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit() and parent_of(name) == me:
                found.append(int(name))
    return found


def parent_of(pid: str) -> int | None:
    """The parent of a process; None when it has just gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    main()
