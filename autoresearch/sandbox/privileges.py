"""Drop privileges: another user id, no capabilities, no new privileges. Linux."""

import ctypes
import os
import struct
from contextlib import suppress

# User and group id of sandboxed processes under a root harness; owns no files.
SANDBOX_USER_ID = 61_999

# <linux/prctl.h>, <linux/capability.h>
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_CAPBSET_DROP, CAP_LAST_CAP = 24, 40
LIBC = ctypes.CDLL(None, use_errno=True)
LINUX_CAPABILITY_VERSION_3 = 0x2008_0522


# -- identity --------------------------------------------------------------------------


def drop_privileges(identity: int) -> None:
    """Change from root to this user id, without groups or capabilities, for good.

    0: stay root, without capabilities. Does nothing where this process is not root.
    """
    if os.geteuid() != 0:
        return
    for capability in range(CAP_LAST_CAP + 1):
        with suppress(OSError):  # the kernel may know fewer
            prctl(PR_CAPBSET_DROP, capability)
    if identity:
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
    # setresuid has dropped the capabilities; a process that stays root drops them here.
    header = ctypes.create_string_buffer(
        struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0), 8
    )
    empty = ctypes.create_string_buffer(24)
    if LIBC.capset(header, empty) < 0:
        raise OSError(ctypes.get_errno(), "capset")
    # setresuid cleared the dumpable flag, which would deny access to /proc/self.
    prctl(PR_SET_DUMPABLE, 1)


def set_no_new_privileges() -> None:
    """Set no_new_privs: a setuid program gains this process nothing."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def prctl(option: int, value: int, pointer: object = 0) -> None:
    """Call prctl; raises OSError."""
    if LIBC.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call_syscall(number: int, *arguments: object) -> int:
    """Make a system call that libc has no wrapper for; raises OSError."""
    result = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
