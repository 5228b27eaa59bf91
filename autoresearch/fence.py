"""What a process can forbid itself for good: system calls, paths, identity. Linux.

Three kernel mechanisms, each needing no helper program and no privilege:

* seccomp: a filter over system calls, assembled here as classic BPF and either given to
  a launcher or loaded by the process itself (man 2 seccomp);
* Landlock: only named paths, no TCP, no signals or abstract sockets to the outside
  (Linux documentation, userspace-api/landlock);
* another user id, when this process is root.

All hold for every thread started later and for every child, and cannot be taken back.
Standard library only; a guest applies it to itself before it reads a byte of train.py.

Not covered: what a path that is allowed contains; time; memory. Elsewhere than on Linux
every function here raises OSError.
"""

import ctypes
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

GUEST_ID = 61_999  # user and group of guests of a root harness; owns nothing

# <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>
KILL, ALLOW, ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
X32_CALLS = 0x4000_0000  # a second table of the same calls on x86-64

NEW_NAMESPACES = 0x7E02_0080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
TERMINAL_TRICKS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing for somebody else

# What no training script needs: other processes' memory, mounts, namespaces, keys that
# outlive a process, the system's clock, kernel interfaces with a history of holes, and
# questions about the page cache, which is a blackboard that outlives every process.
DENIED = {
    "x86_64": """
        ptrace 101  process_vm_readv 310  process_vm_writev 311  kcmp 312
        pidfd_getfd 438  process_madvise 440  memfd_secret 447  bpf 321
        perf_event_open 298  userfaultfd 323  io_uring_setup 425  io_uring_enter 426
        io_uring_register 427  fanotify_init 300  keyctl 250  add_key 248
        request_key 249  mount 165  umount2 166  pivot_root 155  chroot 161  setns 308
        unshare 272  open_tree 428  move_mount 429  fsopen 430  fsconfig 431
        fsmount 432  fspick 433  mount_setattr 442  clock_settime 227
        settimeofday 164  adjtimex 159  clock_adjtime 305  swapon 167  swapoff 168
        reboot 169  acct 163  init_module 175  finit_module 313  delete_module 176
        syslog 103  open_by_handle_at 304  name_to_handle_at 303  quotactl 179
        quotactl_fd 443  kexec_load 246  kexec_file_load 320  vhangup 153
        sethostname 170  setdomainname 171  iopl 172  ioperm 173  modify_ldt 154
        mincore 27  cachestat 451  preadv2 327  lookup_dcookie 212  nfsservctl 180
    """,
    "aarch64": """
        ptrace 117  process_vm_readv 270  process_vm_writev 271  kcmp 272
        pidfd_getfd 438  process_madvise 440  memfd_secret 447  bpf 280
        perf_event_open 241  userfaultfd 282  io_uring_setup 425  io_uring_enter 426
        io_uring_register 427  fanotify_init 262  keyctl 219  add_key 217
        request_key 218  mount 40  umount2 39  pivot_root 41  chroot 51  setns 268
        unshare 97  open_tree 428  move_mount 429  fsopen 430  fsconfig 431
        fsmount 432  fspick 433  mount_setattr 442  clock_settime 112
        settimeofday 170  adjtimex 171  clock_adjtime 266  swapon 224  swapoff 225
        reboot 142  acct 89  init_module 105  finit_module 273  delete_module 106
        syslog 116  open_by_handle_at 265  name_to_handle_at 264  quotactl 60
        quotactl_fd 443  kexec_load 104  kexec_file_load 294  vhangup 58
        sethostname 161  setdomainname 162  lookup_dcookie 18  nfsservctl 42
        mincore 232  cachestat 451  preadv2 286
    """,
}
NUMBERS = {
    machine: dict(zip(words[::2], map(int, words[1::2]), strict=True))
    for machine, words in ((name, table.split()) for name, table in DENIED.items())
}
# As the audit system names them, and calls that are refused by their arguments.
ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
BY_ARGUMENT = {  # socket, clone, clone3, ioctl, fadvise64, madvise
    "x86_64": (41, 56, 435, 16, 221, 28),
    "aarch64": (198, 220, 435, 29, 223, 233),
}
DROP_FROM_CACHE, PAGE_OUT = 4, 21  # POSIX_FADV_DONTNEED, MADV_PAGEOUT
# Memory that outlives its process where there is no namespace for it:
# shmget, semget, msgget, mq_open.
LASTING = {"x86_64": (29, 64, 68, 240), "aarch64": (194, 190, 186, 180)}

# <linux/landlock.h>
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all machines
EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
NEEDED_ABI = 6  # the first that keeps signals and abstract sockets inside

SET_DUMPABLE, SET_NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = (
    4,
    38,
    22,
    2,
)  # <linux/prctl.h>
DROP_FROM_BOUNDING, LAST_CAPABILITY = 24, 40
LIBC = ctypes.CDLL(None, use_errno=True)
CAPABILITY_VERSION = 0x2008_0522


class Fence(NamedTuple):
    """What a guest forbids itself before it begins.

    A tuple, because dataclasses take longer to import than a cage to build.
    """

    read: tuple[str, ...] = ()  # paths, and all below them
    names: tuple[str, ...] = ()  # folders where only names may be seen, at any depth
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # may also be asked with ioctl
    filter: bool = False  # load the seccomp filter (a launcher may have done it)
    identity: int | None = None  # become this user, if root
    paths: bool = True  # use Landlock at all

    def words(self) -> str:
        """As text; thousands of paths do not fit into one argument of a command."""
        return json.dumps(self._asdict())

    @classmethod
    def of(cls, words: str) -> "Fence":
        """What `words` wrote, or `@` and the descriptor that it can be read from."""
        if words.startswith("@"):
            with open(int(words[1:]), "rb") as file:
                words = file.read().decode()
        said = json.loads(words)
        for key in ("read", "names", "write", "devices"):
            said[key] = tuple(said[key])
        return cls(**said)

    def close(self) -> None:
        """Apply it to this process. Raises OSError where the kernel cannot."""
        if self.identity is not None:
            become(self.identity)
        no_new_privileges()
        if self.paths:
            restrict(self.read, self.write, self.devices, self.names)
        if self.filter:
            load(program(sockets=False, lasting=False))


# -- seccomp ---------------------------------------------------------------------------


def program(*, sockets: bool = True, lasting: bool = True) -> bytes:
    """The filter for this machine, as an array of struct sock_filter.

    `sockets`: AF_UNIX may be used (else only pairs). `lasting`: System V memory and
    POSIX queues may be used, because a namespace ends them.
    Raises OSError on a machine whose system calls are not listed here.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    socket_, clone, clone3, ioctl, fadvise, madvise = BY_ARGUMENT[machine]
    lines = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        *refuse(JUMP_AT_LEAST, X32_CALLS, errno.ENOSYS),
        # libc falls back to clone, whose flags a filter can see.
        *refuse(JUMP_EQUAL, clone3, errno.ENOSYS),
    ]
    denied = [*NUMBERS[machine].values(), *(() if lasting else LASTING[machine])]
    for number in denied:
        lines += refuse(JUMP_EQUAL, number, errno.EPERM)
    allowed = (JUMP_EQUAL, 1, 0, socket.AF_UNIX) if sockets else (JUMP_SET, 0, 0, 0)
    lines += case(socket_, 0, [allowed, (RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT)])
    lines += case(clone, 0, refuse(JUMP_SET, NEW_NAMESPACES, errno.EPERM))
    tricks = [part for n in TERMINAL_TRICKS for part in refuse(JUMP_EQUAL, n, 1)]
    lines += case(ioctl, 1, tricks)
    lines += case(fadvise, 3, refuse(JUMP_EQUAL, DROP_FROM_CACHE, errno.EPERM))
    lines += case(madvise, 2, refuse(JUMP_EQUAL, PAGE_OUT, errno.EPERM))
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def refuse(test: int, operand: int, error: int) -> list[Instruction]:
    """Return `error` where the loaded word passes the test."""
    return [(test, 0, 1, operand), (RETURN, 0, 0, ERRNO | error)]


def case(number: int, argument: int, body: list[Instruction]) -> list[Instruction]:
    """For one call: look at the low half of an argument, then allow what is left."""
    return [
        (JUMP_EQUAL, 0, len(body) + 2, number),
        (LOAD, 0, 0, ARGUMENTS_AT + 8 * argument),
        *body,
        (RETURN, 0, 0, ALLOW),
    ]


def load(filter_bytes: bytes) -> None:
    """Put a filter around this process for good."""
    held = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    count = len(filter_bytes) // 8
    fprog = struct.pack("HxxxxxxP", count, ctypes.addressof(held))
    prctl(SET_SECCOMP, FILTER, ctypes.c_char_p(fprog))


# -- Landlock --------------------------------------------------------------------------


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 without one."""
    with suppress(OSError, AttributeError):
        return call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return 0


def restrict(
    read: Iterable[str],
    write: Iterable[str],
    devices: Iterable[str] = (),
    names: Iterable[str] = (),
) -> None:
    """Allow these paths and nothing else; no TCP; no signals to the outside."""
    abi = landlock_abi()
    if abi < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    # Rights that a kernel does not know cannot be handled: 13 in the first version.
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    asked = struct.pack("=Q", rights)
    asked += struct.pack("=Q", 3) if abi >= 4 else b""  # bind and connect over TCP
    asked += struct.pack("=Q", 3) if abi >= 6 else b""  # abstract sockets, signals
    held = ctypes.create_string_buffer(asked, len(asked))
    rules = call(CREATE_RULESET, held, ctypes.c_size_t(len(asked)), ctypes.c_uint32(0))
    try:
        for paths, granted in (
            (read, EXECUTE | READ | LIST),
            (names, LIST),
            (write, rights & ~IOCTL),
            (devices, READ | WRITE | IOCTL),
        ):
            for path in paths:
                allow(rules, path, granted & rights)
        no_new_privileges()
        call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def allow(rules: int, path: str, rights: int) -> None:
    """Add one path to a ruleset; a path that is not there needs no rule."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
        call(ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    finally:
        os.close(place)


# -- identity --------------------------------------------------------------------------


def become(identity: int) -> None:
    """Stop being root: another user with no groups, and no capability, for good."""
    if os.geteuid() != 0:
        return
    for capability in range(LAST_CAPABILITY + 1):
        with suppress(OSError):  # the kernel may know fewer
            prctl(DROP_FROM_BOUNDING, capability)
    if identity:
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
    # Changing the user took them away; one that stays root has to give them up.
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0), 8)
    none = ctypes.create_string_buffer(24)
    if LIBC.capset(header, none) < 0:
        raise OSError(ctypes.get_errno(), "capset")
    # The change of user made this process undumpable: its own /proc/self would be shut.
    prctl(SET_DUMPABLE, 1)


def no_new_privileges() -> None:
    """No setuid program gives this process more than it has."""
    prctl(SET_NO_NEW_PRIVILEGES, 1)


def prctl(option: int, value: int, pointer: object = 0) -> None:
    """One call of prctl, or OSError."""
    if LIBC.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(number: int, *arguments: object) -> int:
    """A system call that libc has no name for, or OSError."""
    found = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
