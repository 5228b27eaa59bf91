"""Landlock: restrict a process to named paths, without TCP or signals to others.

See the Linux documentation, userspace-api/landlock. Needs no privilege.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

from autoresearch.sandbox.privileges import call_syscall, set_no_new_privileges

# <linux/landlock.h>
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all machines
EXECUTE, WRITE, READ, LIST, TRUNCATE, IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
REQUIRED_ABI = 6  # the first that confines signals and abstract sockets


# -- Landlock --------------------------------------------------------------------------


def landlock_abi() -> int:
    """The Landlock ABI version of the kernel; 0 without Landlock."""
    with suppress(OSError, AttributeError):
        return call_syscall(
            CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)
        )
    return 0


def restrict_self(
    read: Iterable[str],
    write: Iterable[str],
    devices: Iterable[str] = (),
    names: Iterable[str] = (),
) -> None:
    """Allow this process only these paths; no TCP; no signals to other processes.

    `names` are folders that may be listed but not read. TCP needs ABI 4, signals and
    abstract sockets ABI 6; an older kernel leaves them open. Raises OSError.
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    # A kernel refuses rights that it does not know: ABI 1 knows 13 of them.
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("=Q", rights)
    attributes += struct.pack("=Q", 3) if abi >= 4 else b""  # TCP bind and connect
    attributes += struct.pack("=Q", 3) if abi >= 6 else b""  # abstract sockets, signals
    size = len(attributes)
    buffer = ctypes.create_string_buffer(attributes, size)
    ruleset = call_syscall(
        CREATE_RULESET, buffer, ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    try:
        for paths, granted in (
            (read, EXECUTE | READ | LIST),
            (names, LIST),
            (write, rights & ~IOCTL),
            (devices, READ | WRITE | IOCTL),
        ):
            for path in paths:
                add_path_rule(ruleset, path, granted & rights)
        set_no_new_privileges()
        call_syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def add_path_rule(ruleset: int, path: str, rights: int) -> None:
    """Add a path to a ruleset; one that does not exist is skipped."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
        call_syscall(
            ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)
        )
    finally:
        os.close(descriptor)
