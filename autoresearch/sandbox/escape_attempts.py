"""The sandboxed half of the self-test: runs where train.py would, and tries to escape.

Every attempt is one function that returns whether it succeeded. The successful ones are
reported over the channel by name; `selftest` knows which level must deny which.
Standard library only, like everything that runs inside the sandbox.
"""

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from autoresearch.devices import rocm
from autoresearch.sandbox import privileges, seccomp
from autoresearch.sandbox.ipc import Channel, Message
from autoresearch.sandbox.restrictions import SandboxRestrictions

ATTEMPTED_SYSCALLS = (
    *("ptrace", "process_vm_readv", "pidfd_getfd", "bpf", "perf_event_open"),
    *("userfaultfd", "io_uring_setup", "keyctl", "unshare", "mount", "setns"),
)
STANDARD_DEVICES = {
    *("console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm"),
    *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
}
IPPROTO_MPTCP = 262  # <linux/in.h>; Landlock's TCP rules do not cover it


def main(descriptor: int, restrictions: str) -> None:
    """Apply the restrictions, receive the targets, try everything, report successes."""
    if restrictions:
        SandboxRestrictions.from_argument(restrictions).apply()
    link = Channel(socket.socket(fileno=descriptor))
    targets, _ = link.receive()
    escapes = [
        name
        for name, attempt in list_attempts(targets, descriptor)
        if has_succeeded(attempt)
    ]
    link.send({"say": "found", "open": escapes})
    os._exit(0)


def count_gpus(descriptor: int, restrictions: str) -> None:
    """Apply the restrictions and count the GPUs of CUDA or HIP; -1 without either."""
    if restrictions:
        SandboxRestrictions.from_argument(restrictions).apply()
    count = ctypes.c_int(-1)
    with suppress(OSError):  # no driver
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0:
            cuda.cuDeviceGetCount(ctypes.byref(count))
    folders = (rocm.torch_libraries(), "/opt/rocm/lib") if rocm.has_rocm_torch() else ()
    for folder in folders:
        with suppress(OSError):  # it is in the other one
            hip = ctypes.CDLL(f"{folder}/libamdhip64.so")
            if hip.hipInit(0) == 0:
                hip.hipGetDeviceCount(ctypes.byref(count))
                break
    link = Channel(socket.socket(fileno=descriptor))
    link.send({"say": "found", "gpus": count.value})
    os._exit(0)


def has_succeeded(attempt: Callable[[], bool]) -> bool:
    """Whether an attempt succeeded; an OSError means that it was denied."""
    try:
        return attempt()
    except OSError:
        return False


Attempt = tuple[str, Callable[[], bool]]  # the name of an escape, how to attempt it


def list_attempts(targets: Message, descriptor: int) -> list[Attempt]:
    """All attempts, on the targets that the harness named."""
    return [
        *list_file_attempts(targets),
        *list_harness_attempts(targets),
        *list_process_attempts(targets, descriptor),
        *(
            (f"the system call {name}", lambda n=name: is_syscall_allowed(n))
            for name in ATTEMPTED_SYSCALLS
        ),
    ]


def list_file_attempts(targets: Message) -> list[Attempt]:
    """Attempts to read, list or write files."""
    return [
        ("files of the lab", lambda: bool(read_beginning(targets["canary"]))),
        ("the folder of the lab", lambda: bool(os.listdir(targets["lab"]))),
        (
            "the home folder",
            lambda: shows_unexpected_names(targets["home"], targets["home_names"]),
        ),
        (
            "the sealed data",
            lambda: shows_unexpected_names(targets["cache"], targets["cache_names"]),
        ),
        ("tests of libraries", lambda: any(map(can_read_any_file, targets["hidden"]))),
        ("names of tests", lambda: any(map(can_list, targets["hidden"]))),
        (
            "writing outside the scratch",
            lambda: any(map(can_create_file, targets["places"])),
        ),
        (
            "scratch without a limit",
            lambda: not has_size_limit(targets["scratch_bytes"]),
        ),
    ]


def list_harness_attempts(targets: Message) -> list[Attempt]:
    """Attempts to reach the harness's process and its listeners."""
    pid = targets["pid"]
    return [
        ("other processes", lambda: os.path.exists(f"/proc/{pid}/stat")),
        ("signals to the harness", lambda: can_call(os.kill, pid, 0)),
        (
            "the harness's environment",
            lambda: bool(read_beginning(f"/proc/{pid}/environ")),
        ),
        ("the harness's memory", lambda: can_call(open, f"/proc/{pid}/mem", "rb")),
        ("TCP", lambda: can_connect(socket.AF_INET, 0, tuple(targets["tcp"]))),
        (
            "MPTCP",
            lambda: can_connect(socket.AF_INET, IPPROTO_MPTCP, tuple(targets["tcp"])),
        ),
        ("UDP", lambda: can_send_datagram(tuple(targets["udp"]))),
        (
            "abstract sockets",
            lambda: can_connect(socket.AF_UNIX, 0, "\0" + targets["name"]),
        ),
        ("named sockets", lambda: can_connect(socket.AF_UNIX, 0, targets["path"])),
    ]


def list_process_attempts(targets: Message, descriptor: int) -> list[Attempt]:
    """Checks of what this process was given or has kept."""
    return [
        ("variables", lambda: not set(os.environ) <= set(targets["variables"])),
        ("descriptors", lambda: bool(list_inherited_descriptors(descriptor))),
        ("capabilities", lambda: int(read_proc_status("CapEff"), 16) != 0),
        ("new privileges", lambda: read_proc_status("NoNewPrivs") != "1"),
        ("unfiltered system calls", lambda: read_proc_status("Seccomp") != "2"),
        ("the harness's user", lambda: os.getuid() == targets["uid"]),
        ("the clock", lambda: can_call(time.clock_settime, 0, time.time())),
        ("devices", lambda: not set(os.listdir("/dev")) <= set(targets["devices"])),
    ]


def read_beginning(path: str) -> bytes:
    """The first 64 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(64)


def can_call(act: Callable[..., object], *arguments: object) -> bool:
    """Call it; True unless it raises OSError."""
    act(*arguments)
    return True


def can_list(folder: str) -> bool:
    """Whether a folder shows any names."""
    with suppress(OSError):
        return bool(os.listdir(folder))
    return False


def can_read_any_file(folder: str) -> bool:
    """Whether any file in a folder, or one level below it, can be read."""
    for parent, folders, files in os.walk(folder):
        if parent.count("/") > folder.count("/"):
            folders.clear()
        for name in files[:20]:
            with suppress(OSError):
                read_beginning(os.path.join(parent, name))
                return True
    return False


def shows_unexpected_names(folder: str, known: list[str]) -> bool:
    """Whether a folder shows more names than those that have to be visible."""
    return not set(os.listdir(folder)) <= set(known)


def can_create_file(folder: str) -> bool:
    """Whether a file can be created in a folder; it is removed at once."""
    path = os.path.join(folder, f".autoresearch-probe-{os.getpid()}")
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
        os.unlink(path)
        return True
    return False


def has_size_limit(limit_bytes: int) -> bool:
    """Whether the filesystem of the current folder is no larger than allowed."""
    filesystem = os.statvfs(".")
    size_bytes = filesystem.f_blocks * filesystem.f_frsize
    return size_bytes <= limit_bytes + (1 << 20)


def can_connect(family: int, protocol: int, address: tuple[str, int] | str) -> bool:
    """Whether a stream socket can connect to a listener of the harness."""
    with socket.socket(family, socket.SOCK_STREAM, protocol) as end:
        end.settimeout(1.0)
        end.connect(address)
    return True


def can_send_datagram(address: tuple[str, int]) -> bool:
    """Whether a datagram can be sent to the harness."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        return end.sendto(b"x", address) == 1


def list_inherited_descriptors(channel: int) -> set[str]:
    """Inherited descriptors other than the standard three and the channel."""
    inherited = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # listdir's own, closed by now
            os.readlink(f"/proc/self/fd/{name}")
            inherited.add(name)
    return inherited - {"0", "1", "2", str(channel)}


def read_proc_status(name: str) -> str:
    """One field of /proc/self/status."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return lines[name].strip()


def is_syscall_allowed(name: str) -> bool:
    """Whether the filter passes a system call, made with meaningless arguments."""
    number = seccomp.DENIED_SYSCALL_NUMBERS[os.uname().machine][name]
    try:
        privileges.call_syscall(number, 0, 0, 0, 0, 0)
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.ENOSYS)
    return True
