"""The seccomp-BPF filter over system calls, assembled here as classic BPF. Linux.

It is either handed to a launcher or installed by the process itself, before it reads a
byte of train.py (man 2 seccomp). It needs no helper program and no privilege, holds for
every thread and child started later, and cannot be removed. `landlock` and `privileges`
are the other two mechanisms of this kind; `restrictions` applies all three. Standard
library only.

Not covered: pointer arguments, such as paths, which a filter cannot read; time; memory.
Off Linux, and on machines whose system call numbers are not listed, OSError is raised.
"""

import ctypes
import errno
import os
import socket
import struct

from autoresearch.sandbox.privileges import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prctl

# <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>
RET_KILL, RET_ALLOW, RET_ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data.
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
X32_SYSCALL_BIT = 0x4000_0000  # a second numbering of the same calls on x86-64

CLONE_NAMESPACE_FLAGS = 0x7E02_0080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
# TIOCSTI, TIOCLINUX: they inject input into the user's terminal.
TERMINAL_INJECTION_IOCTLS = (0x5412, 0x541C)

# What no training script needs: other processes' memory, mounts, namespaces, keys that
# outlive a process, the system clock, kernel interfaces with a history of exploits, and
# queries of the page cache: a covert channel that survives process exit.
DENIED_SYSCALL_TABLES = {
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
DENIED_SYSCALL_NUMBERS = {
    machine: dict(zip(words[::2], map(int, words[1::2]), strict=True))
    for machine, words in (
        (name, table.split()) for name, table in DENIED_SYSCALL_TABLES.items()
    )
}
# AUDIT_ARCH_* constants, and the calls that are denied by their arguments.
AUDIT_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
ARGUMENT_FILTERED_SYSCALLS = {  # socket, clone, clone3, ioctl, fadvise64, madvise
    "x86_64": (41, 56, 435, 16, 221, 28),
    "aarch64": (198, 220, 435, 29, 223, 233),
}
POSIX_FADV_DONTNEED, MADV_PAGEOUT = 4, 21  # they evict pages from the page cache
# IPC objects that outlive their process without an IPC namespace:
# shmget, semget, msgget, mq_open.
PERSISTENT_IPC_SYSCALLS = {"x86_64": (29, 64, 68, 240), "aarch64": (194, 190, 186, 180)}


# -- seccomp ---------------------------------------------------------------------------


def build_filter(*, allow_sockets: bool = True, allow_ipc: bool = True) -> bytes:
    """Assemble the filter for this machine, as an array of struct sock_filter.

    `allow_sockets`: AF_UNIX sockets (without it only socket pairs). `allow_ipc`:
    System V IPC and POSIX message queues, for use with an IPC namespace.
    Raises OSError on a machine whose system call numbers are not listed here.
    """
    machine = os.uname().machine
    if machine not in AUDIT_ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call numbers for {machine}")
    socket_, clone, clone3, ioctl, fadvise, madvise = ARGUMENT_FILTERED_SYSCALLS[
        machine
    ]
    lines = [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]),
        (RETURN, 0, 0, RET_KILL),
        (LOAD, 0, 0, NUMBER_OFFSET),
        *deny_if(JUMP_AT_LEAST, X32_SYSCALL_BIT, errno.ENOSYS),
        # libc falls back to clone, whose flags a filter can see.
        *deny_if(JUMP_EQUAL, clone3, errno.ENOSYS),
    ]
    denied = [
        *DENIED_SYSCALL_NUMBERS[machine].values(),
        *(() if allow_ipc else PERSISTENT_IPC_SYSCALLS[machine]),
    ]
    for number in denied:
        lines += deny_if(JUMP_EQUAL, number, errno.EPERM)
    family = (
        (JUMP_EQUAL, 1, 0, socket.AF_UNIX) if allow_sockets else (JUMP_SET, 0, 0, 0)
    )
    lines += filter_argument(
        socket_, 0, [family, (RETURN, 0, 0, RET_ERRNO | errno.EAFNOSUPPORT)]
    )
    lines += filter_argument(
        clone, 0, deny_if(JUMP_SET, CLONE_NAMESPACE_FLAGS, errno.EPERM)
    )
    injections = [
        part for n in TERMINAL_INJECTION_IOCTLS for part in deny_if(JUMP_EQUAL, n, 1)
    ]
    lines += filter_argument(ioctl, 1, injections)
    lines += filter_argument(
        fadvise, 3, deny_if(JUMP_EQUAL, POSIX_FADV_DONTNEED, errno.EPERM)
    )
    lines += filter_argument(madvise, 2, deny_if(JUMP_EQUAL, MADV_PAGEOUT, errno.EPERM))
    lines.append((RETURN, 0, 0, RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


BpfInstruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def deny_if(test: int, operand: int, error: int) -> list[BpfInstruction]:
    """Return `error` where the loaded word passes the test, else go on."""
    return [(test, 0, 1, operand), (RETURN, 0, 0, RET_ERRNO | error)]


def filter_argument(
    number: int, argument: int, body: list[BpfInstruction]
) -> list[BpfInstruction]:
    """For one system call: load the low half of an argument, run `body`, then allow."""
    return [
        (JUMP_EQUAL, 0, len(body) + 2, number),
        (LOAD, 0, 0, ARGUMENTS_OFFSET + 8 * argument),
        *body,
        (RETURN, 0, 0, RET_ALLOW),
    ]


def install_filter(filter_bytes: bytes) -> None:
    """Install a filter in this process, for good. Raises OSError."""
    buffer = ctypes.create_string_buffer(filter_bytes, len(filter_bytes))
    count = len(filter_bytes) // 8
    fprog = struct.pack("HxxxxxxP", count, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog))
