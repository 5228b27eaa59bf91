"""Landlock: allow a process named paths only, no TCP, no signals to the outside."""

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
REQUIRED_ABI = 6  # the first that keeps signals and abstract sockets inside


# -- Landlock --------------------------------------------------------------------------


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 without one."""
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
    rules = call_syscall(
        CREATE_RULESET, held, ctypes.c_size_t(len(asked)), ctypes.c_uint32(0)
    )
    try:
        for paths, granted in (
            (read, EXECUTE | READ | LIST),
            (names, LIST),
            (write, rights & ~IOCTL),
            (devices, READ | WRITE | IOCTL),
        ):
            for path in paths:
                add_path_rule(rules, path, granted & rights)
        set_no_new_privileges()
        call_syscall(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def add_path_rule(rules: int, path: str, rights: int) -> None:
    """Add one path to a ruleset; a path that is not there needs no rule."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
        call_syscall(
            ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0)
        )
    finally:
        os.close(place)
