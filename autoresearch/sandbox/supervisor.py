"""The supervisor: start a command, wait for it, then kill its whole process tree.

    python -I -S -B supervisor.py CONTROL KEEP,KEEP FILE_BYTES GROUP:GROUP COMMAND...

CONTROL is a socket to the harness. When it closes (the harness closed it, or died at
any instruction) or when the command exits, every process it ever started is killed:
this process is a subreaper (PR_SET_CHILD_SUBREAPER), to which the kernel reparents
orphans, so setsid and double forks do not escape. Before the command runs, its process
joins the control groups given by their `cgroup.procs` files. When all are dead, the
supervisor writes `exited CODE` to CONTROL, with a signal as a negative code; its own
exit code is 0.

Not covered: a command of the same user that kills or stops the supervisor (the harness
then finds survivors by their environment); off Linux, only the process group is killed.
Standard library only, its fast part, and no import of the package: it is on the
start-up path of every run.
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
    import _signal as signal  # the enums of `signal` take 6 ms to create

PR_SET_CHILD_SUBREAPER = 36
GIVE_UP_SECONDS = 5.0
MAX_PROCESSES = 8192  # includes threads, and the user's other processes


def main() -> None:
    control, keep = int(sys.argv[1]), [int(fd) for fd in sys.argv[2].split(",")]
    file_bytes, groups, command = int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    # Or the sandboxed process could forge the exit message.
    os.set_inheritable(control, False)
    become_subreaper()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The sandboxed process may send them; only CONTROL counts.
        signal.signal(name, signal.SIG_IGN)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = os.fork()
    if child == 0:
        exec_command(command, keep, file_bytes, groups)
    raise_priority()
    for descriptor in keep:
        os.close(descriptor)  # or the harness would never see the child close it
    code = wait_for_exit(child, control, woken)
    if not kill_descendants(child):
        sys.exit(1)
    try:
        os.write(control, f"exited {code}\n".encode())
    except OSError:
        pass  # the harness is gone


def become_subreaper() -> None:
    """Become the parent of every orphaned descendant (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_priority() -> None:
    """Get real-time priority (Linux, root): spinning processes would delay the kill."""
    if sys.platform == "linux":
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError:
            pass


def exec_command(
    command: list[str], keep: list[int], file_bytes: int, groups: str
) -> None:
    """In the child: new session, limits and control groups, then exec the command."""
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    os.setsid()
    # 1, not 0: where the kernel pipes core dumps to a program, only 1 disables them.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    limit_processes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # The OOM killer should prefer this process. Only Linux has the file.
    try_write_file("/proc/self/oom_score_adj", "500")
    for group in filter(None, groups.split(":")):
        try_write_file(group, "0")
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execv(command[0], command)


def limit_processes() -> None:
    """Limit the number of processes, so that the harness of the same user has some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    allowed = MAX_PROCESSES if hard < 0 else min(MAX_PROCESSES, hard * 3 // 4)
    resource.setrlimit(resource.RLIMIT_NPROC, (allowed, allowed))


def try_write_file(path: str, text: str) -> None:
    """Write a file of the kernel, where it exists and is writable."""
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        pass


def wait_for_exit(child: int, control: int, woken: int) -> int:
    """Wait until the child exits or CONTROL closes; return the exit code."""
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if control in ready:
            return -signal.SIGKILL
        try:
            os.read(woken, 4096)
        except BlockingIOError:
            pass
        code, _ = reap_children(child)
        if code is not None:
            return code


def reap_children(child: int) -> tuple[int | None, bool]:
    """Reap every dead child: (exit code of `child` if reaped, whether none is left).

    None left: neither dead nor alive.
    """
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, True
        if pid == 0:
            return code, False
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def kill_descendants(child: int) -> bool:
    """Kill children until none is left; orphans of the killed become children.

    False after GIVE_UP_SECONDS, which only a process stuck in the kernel takes.
    """
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        for pid in iter_children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _, none_left = reap_children(child)
        if none_left:
            return True
        time.sleep(0.001)
    return False


def iter_children() -> "Iterator[int]":
    """The current children of this process (Linux; elsewhere none are known).

    Newest first, each as soon as it is found: a process that forks and exits all the
    time has a new pid by the time a whole list is complete.
    """
    me = os.getpid()
    if sys.platform != "linux":
        return
    for name in reversed(os.listdir("/proc")):
        if name.isdigit() and read_parent_pid(name) == me:
            yield int(name)


def read_parent_pid(pid: str) -> int | None:
    """The parent pid of a process; None where it has just exited."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    main()
