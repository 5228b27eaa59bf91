"""Sealed memory: files in RAM (memfd) whose size and content cannot change any more."""

import fcntl
import mmap
import os
from collections.abc import Iterable

# <linux/fcntl.h>; the fcntl module names them only where libc does.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1, 2, 4, 8
SEAL_FUTURE_WRITE = 16
ALL_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE
COPY_CHUNK_BYTES = 16 << 20  # at a time: what a processor's caches hold
HAS_MEMFD = hasattr(os, "memfd_create")


class ProtocolError(Exception):
    """The other side sent something that is not a message of this protocol."""


# -- memory that cannot change ---------------------------------------------------------


def create_memfd(name: str) -> int:
    """A new file descriptor of memory that has no path."""
    if HAS_MEMFD:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile  # a slow import, for a minority

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def seal_bytes(whole: "memoryview | bytes", name: str = "sealed") -> int:
    """Copy bytes into memory that nobody can change any more, the sender included."""
    return seal_parts([whole], name)


def seal_parts(parts: "Iterable[memoryview | bytes]", name: str) -> int:
    """The same of what lies in several pieces, one after the other."""
    descriptor = create_memfd(name)
    for part in parts:
        write_all(descriptor, memoryview(part).cast("B"))
    return add_seals(descriptor)


def seal_file(path: "os.PathLike[str]", name: str) -> int:
    """The same of a file, which may be larger than one likes to hold twice."""
    with open(path, "rb", buffering=0) as file:
        descriptor = create_memfd(name)
        while part := file.read(COPY_CHUNK_BYTES):
            write_all(descriptor, memoryview(part))
    return add_seals(descriptor)


def write_all(descriptor: int, view: memoryview) -> None:
    """Write, however many calls it takes."""
    written = 0
    while written < len(view):
        written += os.write(descriptor, view[written : written + (1 << 28)])


def add_seals(descriptor: int) -> int:
    """The same descriptor, at its start, of what cannot change any more."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    if HAS_MEMFD:
        fcntl.fcntl(descriptor, F_ADD_SEALS, ALL_SEALS)
    return descriptor


def create_shared_memory(
    size_bytes: int, name: str, *, writer: bool
) -> tuple[int, mmap.mmap]:
    """Memory of fixed size for two processes: (descriptor to send, own mapping).

    With `writer` the receiver may write too; without it only the caller can.
    The size is sealed: a shrunk mapping would kill its reader with SIGBUS.
    """
    descriptor = create_memfd(name)
    os.ftruncate(descriptor, size_bytes)
    mapping = mmap.mmap(descriptor, size_bytes)
    if HAS_MEMFD:
        seals = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW
        seals |= 0 if writer else SEAL_FUTURE_WRITE
        fcntl.fcntl(descriptor, F_ADD_SEALS, seals)
    return descriptor, mapping


def map_verified(descriptor: int, largest_bytes: int) -> memoryview:
    """What the other side sealed; Junk if it can still change or is too large.

    Not a copy where memory can be sealed: it stays until the last look at it is gone.
    """
    if HAS_MEMFD:
        try:
            seals = fcntl.fcntl(descriptor, F_GET_SEALS)
        except OSError:
            raise ProtocolError("a file where sealed memory was expected") from None
        if seals & ALL_SEALS != ALL_SEALS:
            raise ProtocolError("memory that is not sealed")
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > largest_bytes:
        raise ProtocolError(
            f"{size_bytes} bytes where at most {largest_bytes} are taken"
        )
    try:
        if HAS_MEMFD:
            return map_read_only(descriptor)  # half a GB is common
        read = bytearray()
        while len(read) < size_bytes:
            part = os.pread(descriptor, min(1 << 28, size_bytes - len(read)), len(read))
            if not part:
                break
            read += part
    except OSError:  # it may have been opened for writing only
        raise ProtocolError("memory that cannot be read") from None
    return memoryview(read)


def map_read_only(descriptor: int) -> memoryview:
    """A read-only look at sealed memory, without copying it."""
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes == 0:
        return memoryview(b"")
    # MAP_PRIVATE: before Linux 6.7 a shared mapping of write-sealed memory was refused.
    return memoryview(
        mmap.mmap(descriptor, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ)
    )
