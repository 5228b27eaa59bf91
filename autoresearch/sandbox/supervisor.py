"""The one process between harness and guest: starts it, waits, then kills everything.

    python -I -S -B warden.py CONTROL KEEP,KEEP FILE_BYTES GROUP:GROUP COMMAND...

CONTROL is a socket to the harness. When it closes (the harness hung up, or died at any
instruction) or when the guest's first process exits, every process the guest ever
started is killed: children of dead parents are handed to this process by the kernel
(PR_SET_CHILD_SUBREAPER), so setsid and double forks do not escape. The guest joins the
control groups whose `cgroup.procs` files are named before it runs. When all are dead it
writes `exited CODE` to CONTROL, a signal as a negative code; its own exit code is 0.

Not covered: a guest of the same user that kills or stops the warden itself (the harness
then sweeps for survivors by their environment); off Linux, only the process group.
Standard library only, the fast half of it, and no import of the package: it is on every
run's start-up path.
"""

import ctypes
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
else:
    import _signal as signal  # what `signal` wraps: its enums take 6 ms to make

PR_SET_CHILD_SUBREAPER = 36
GIVE_UP_SECONDS = 5.0
MAX_PROCESSES = 8192  # threads count too, and so do the user's others


def main() -> None:
    control, keep = int(sys.argv[1]), [int(fd) for fd in sys.argv[2].split(",")]
    file_bytes, groups, command = int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    os.set_inheritable(control, False)  # else the guest could speak for its warden
    become_subreaper()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A guest may send them; only CONTROL counts.
        signal.signal(name, signal.SIG_IGN)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    guest = os.fork()
    if guest == 0:
        exec_command(command, keep, file_bytes, groups)
    raise_priority()
    for descriptor in keep:
        os.close(descriptor)  # else the harness would never see the guest hang up
    code = wait_for_exit(guest, control, woken)
    if not kill_descendants(guest):
        sys.exit(1)
    try:
        os.write(control, f"exited {code}\n".encode())
    except OSError:
        pass  # the harness is gone; there is nobody to tell


def become_subreaper() -> None:
    """Make this process the parent of every orphaned descendant (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_priority() -> None:
    """Run before any guest where root may ask for it: spinning ones delay their end."""
    if sys.platform == "linux":
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError:
            pass


def exec_command(
    command: list[str], keep: list[int], file_bytes: int, groups: str
) -> None:
    """In the child: limits, a session of its own, then the guest."""
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    os.setsid()
    # 1, not 0: where the kernel pipes dumps to a program, only 1 byte means none.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    limit_processes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # When memory runs out, take the guest first. Only Linux has the file.
    try_write_file("/proc/self/oom_score_adj", "500")
    for group in filter(None, groups.split(":")):
        try_write_file(group, "0")
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execv(command[0], command)


def limit_processes() -> None:
    """Leave some of a user's processes to the harness, which may be the same user."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    allowed = MAX_PROCESSES if hard < 0 else min(MAX_PROCESSES, hard * 3 // 4)
    resource.setrlimit(resource.RLIMIT_NPROC, (allowed, allowed))


def try_write_file(path: str, words: str) -> None:
    """Tell the kernel something, if it listens."""
    try:
        with open(path, "w") as file:
            file.write(words)
    except OSError:
        pass


def wait_for_exit(guest: int, control: int, woken: int) -> int:
    """Until the guest exits or the harness hangs up; its exit code."""
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if control in ready:
            return -signal.SIGKILL
        try:
            os.read(woken, 4096)
        except BlockingIOError:
            pass
        code, _ = reap_children(guest)
        if code is not None:
            return code


def reap_children(guest: int) -> tuple[int | None, bool]:
    """Collect every dead child: (the guest's exit code if seen, whether none is left).

    None left means neither dead nor alive.
    """
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, True
        if pid == 0:
            return code, False
        if pid == guest:
            code = os.waitstatus_to_exitcode(status)


def kill_descendants(guest: int) -> bool:
    """Kill children until there are none; orphans of the killed become children.

    False after some seconds, which only a process stuck in the kernel takes.
    """
    try:
        os.killpg(guest, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        for pid in iter_children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _, none_left = reap_children(guest)
        if none_left:
            return True
        time.sleep(0.001)
    return False


def iter_children() -> "Iterator[int]":
    """The present children of this process (Linux; elsewhere none are known).

    The newest first and each as soon as it is seen: one that forks and exits all the
    time has another number when a whole list is ready.
    """
    me = os.getpid()
    if sys.platform != "linux":
        return
    for name in reversed(os.listdir("/proc")):
        if name.isdigit() and read_parent_pid(name) == me:
            yield int(name)


def read_parent_pid(pid: str) -> int | None:
    """The parent of a process; None when it has just gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    main()
