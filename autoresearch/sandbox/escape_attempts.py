"""The self-test's far end: runs where a train.py would, and tries to get out.

Every attempt is one function that returns whether it got through. What is found is
reported over the channel by name; `probing` knows which level must deny which.
Standard library only, like everything on the guest's side.
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

ATTEMPTED_SYSCALLS: tuple[str, ...] = (
    "ptrace",
    "process_vm_readv",
    "pidfd_getfd",
    "bpf",
    "perf_event_open",
)
ATTEMPTED_SYSCALLS += (
    "userfaultfd",
    "io_uring_setup",
    "keyctl",
    "unshare",
    "mount",
    "setns",
)
STANDARD_DEVICES = {
    "console",
    "core",
    "fd",
    "full",
    "null",
    "ptmx",
    "pts",
    "random",
    "shm",
}
STANDARD_DEVICES |= {"stderr", "stdin", "stdout", "tty", "urandom", "zero"}
IPPROTO_MPTCP = 262  # IPPROTO_MPTCP, which rules about TCP forget


def main(descriptor: int, words: str) -> None:
    """Shut in, hear where to look, try everything, report what is open."""
    if words:
        SandboxRestrictions.from_argument(words).apply()
    link = Channel(socket.socket(fileno=descriptor))
    asked, _ = link.receive()
    found = [
        name
        for name, attempt in list_attempts(asked, descriptor)
        if has_succeeded(attempt)
    ]
    link.send({"say": "found", "open": found})
    os._exit(0)


def gpus(descriptor: int, words: str) -> None:
    """Shut in, and count the GPUs that CUDA or HIP finds; -1 where neither is there."""
    if words:
        SandboxRestrictions.from_argument(words).apply()
    count = ctypes.c_int(-1)
    with suppress(OSError):  # no driver
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0:
            cuda.cuDeviceGetCount(ctypes.byref(count))
    places = (rocm.torch_libraries(), "/opt/rocm/lib") if rocm.has_rocm_torch() else ()
    for place in places:
        with suppress(OSError):  # the other one has it
            hip = ctypes.CDLL(f"{place}/libamdhip64.so")
            if hip.hipInit(0) == 0:
                hip.hipGetDeviceCount(ctypes.byref(count))
                break
    link = Channel(socket.socket(fileno=descriptor))
    link.send({"say": "found", "gpus": count.value})
    os._exit(0)


def has_succeeded(attempt: Callable[[], bool]) -> bool:
    """Whether an attempt got through; to be refused is what it is here for."""
    try:
        return attempt()
    except OSError:
        return False


def list_attempts(
    asked: Message, descriptor: int
) -> list[tuple[str, Callable[[], bool]]]:
    """(what would be open, how to try it)."""
    pid = asked["pid"]
    calls = [
        (f"the system call {name}", lambda n=name: is_syscall_allowed(n))
        for name in ATTEMPTED_SYSCALLS
    ]
    return [
        ("files of the lab", lambda: bool(read_beginning(asked["canary"]))),
        ("the folder of the lab", lambda: bool(os.listdir(asked["lab"]))),
        (
            "the home folder",
            lambda: shows_unexpected_names(asked["home"], asked["home_names"]),
        ),
        (
            "the sealed data",
            lambda: shows_unexpected_names(asked["cache"], asked["cache_names"]),
        ),
        ("tests of libraries", lambda: any(map(can_read_any_file, asked["hidden"]))),
        ("names of tests", lambda: any(map(can_list, asked["hidden"]))),
        (
            "writing outside the scratch",
            lambda: any(map(can_create_file, asked["places"])),
        ),
        ("scratch without a limit", lambda: not has_size_limit(asked["scratch_bytes"])),
        ("other processes", lambda: os.path.exists(f"/proc/{pid}/stat")),
        ("signals to the harness", lambda: can_call(os.kill, pid, 0)),
        (
            "the harness's environment",
            lambda: bool(read_beginning(f"/proc/{pid}/environ")),
        ),
        ("the harness's memory", lambda: can_call(open, f"/proc/{pid}/mem", "rb")),
        ("TCP", lambda: can_connect(socket.AF_INET, 0, tuple(asked["tcp"]))),
        (
            "MPTCP",
            lambda: can_connect(socket.AF_INET, IPPROTO_MPTCP, tuple(asked["tcp"])),
        ),
        ("UDP", lambda: can_send_datagram(tuple(asked["udp"]))),
        (
            "abstract sockets",
            lambda: can_connect(socket.AF_UNIX, 0, "\0" + asked["name"]),
        ),
        ("named sockets", lambda: can_connect(socket.AF_UNIX, 0, asked["path"])),
        ("variables", lambda: not set(os.environ) <= set(asked["variables"])),
        ("descriptors", lambda: bool(list_inherited_descriptors(descriptor))),
        ("capabilities", lambda: int(read_proc_status("CapEff"), 16) != 0),
        ("new privileges", lambda: read_proc_status("NoNewPrivs") != "1"),
        ("unfiltered system calls", lambda: read_proc_status("Seccomp") != "2"),
        ("the harness's user", lambda: os.getuid() == asked["uid"]),
        ("the clock", lambda: can_call(time.clock_settime, 0, time.time())),
        ("devices", lambda: not set(os.listdir("/dev")) <= set(asked["devices"])),
        *calls,
    ]


def read_beginning(path: str) -> bytes:
    """The beginning of a file."""
    with open(path, "rb") as file:
        return file.read(64)


def can_call(act: Callable[..., object], *arguments: object) -> bool:
    """Whether something could be done at all."""
    act(*arguments)
    return True


def can_list(folder: str) -> bool:
    """Whether a folder shows anything."""
    with suppress(OSError):
        return bool(os.listdir(folder))
    return False


def can_read_any_file(folder: str) -> bool:
    """Whether any file in a folder, or in one right below it, can be read."""
    for place, folders, files in os.walk(folder):
        if place.count("/") > folder.count("/"):
            folders.clear()
        for name in files[:20]:
            with suppress(OSError):
                read_beginning(os.path.join(place, name))
                return True
    return False


def shows_unexpected_names(folder: str, known: list[str]) -> bool:
    """Whether a folder shows more than the way to what has to be visible."""
    return not set(os.listdir(folder)) <= set(known)


def can_create_file(folder: str) -> bool:
    """Whether a file can be made in a folder; it is removed at once."""
    path = os.path.join(folder, f".autoresearch-probe-{os.getpid()}")
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
        os.unlink(path)
        return True
    return False


def has_size_limit(most_bytes: int) -> bool:
    """Whether the folder it works in is no larger than it may be."""
    found = os.statvfs(".")
    return found.f_blocks * found.f_frsize <= most_bytes + (1 << 20)


def can_connect(family: int, protocol: int, where: tuple[str, int] | str) -> bool:
    """Whether a stream socket gets through to a listener of the harness."""
    with socket.socket(family, socket.SOCK_STREAM, protocol) as end:
        end.settimeout(1.0)
        end.connect(where)
    return True


def can_send_datagram(where: tuple[str, int]) -> bool:
    """Whether a datagram can be sent to the harness."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        return end.sendto(b"x", where) == 1


def list_inherited_descriptors(channel: int) -> set[str]:
    """Inherited descriptors besides the standard ones and the channel."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that listed them is closed by now
            os.readlink(f"/proc/self/fd/{name}")
            found.add(name)
    return found - {"0", "1", "2", str(channel)}


def read_proc_status(name: str) -> str:
    """One line of what the kernel says of this process."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return lines[name].strip()


def is_syscall_allowed(name: str) -> bool:
    """Whether the filter lets a system call through; its arguments make no sense."""
    number = seccomp.DENIED_SYSCALL_NUMBERS[os.uname().machine][name]
    try:
        privileges.call_syscall(number, 0, 0, 0, 0, 0)
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.ENOSYS)
    return True
