"""Give up root: another user id, no capabilities, no new privileges. Linux."""

import ctypes
import os
import struct
from contextlib import suppress

SANDBOX_USER_ID = 61_999  # user and group of guests of a root harness; owns nothing

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = (
    4,
    38,
    22,
    2,
)  # <linux/prctl.h>
PR_CAPBSET_DROP, CAP_LAST_CAP = 24, 40
LIBC = ctypes.CDLL(None, use_errno=True)
LINUX_CAPABILITY_VERSION_3 = 0x2008_0522


# -- identity --------------------------------------------------------------------------


def drop_privileges(identity: int) -> None:
    """Stop being root: another user with no groups, and no capability, for good."""
    if os.geteuid() != 0:
        return
    for capability in range(CAP_LAST_CAP + 1):
        with suppress(OSError):  # the kernel may know fewer
            prctl(PR_CAPBSET_DROP, capability)
    if identity:
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
    # Changing the user took them away; one that stays root has to give them up.
    header = ctypes.create_string_buffer(
        struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0), 8
    )
    none = ctypes.create_string_buffer(24)
    if LIBC.capset(header, none) < 0:
        raise OSError(ctypes.get_errno(), "capset")
    # The change of user made this process undumpable: its own /proc/self would be shut.
    prctl(PR_SET_DUMPABLE, 1)


def set_no_new_privileges() -> None:
    """No setuid program gives this process more than it has."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def prctl(option: int, value: int, pointer: object = 0) -> None:
    """One call of prctl, or OSError."""
    if LIBC.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call_syscall(number: int, *arguments: object) -> int:
    """A system call that libc has no name for, or OSError."""
    found = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
