"""Sealed memory: files in RAM (memfd) whose size and content can no longer change."""

import fcntl
import mmap
import os
from collections.abc import Iterable

# <linux/fcntl.h>; the fcntl module names them only where libc does.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1, 2, 4, 8
SEAL_FUTURE_WRITE = 16
ALL_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE
COPY_CHUNK_BYTES = 16 << 20  # per read: about what a CPU's caches hold
HAS_MEMFD = hasattr(os, "memfd_create")


class ProtocolError(Exception):
    """The peer sent something that violates the protocol."""


# -- memory that cannot change ---------------------------------------------------------


def create_memfd(name: str) -> int:
    """Create anonymous memory; return its file descriptor.

    A memfd, or an unlinked temporary file where the system has no memfds (macOS).
    """
    if HAS_MEMFD:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile  # slow to import, and rarely needed

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def seal_bytes(content: "memoryview | bytes", name: str = "sealed") -> int:
    """Copy bytes into sealed memory, which even the sender cannot change.

    Returns a file descriptor at offset 0, as the other `seal_` functions do.
    """
    return seal_parts([content], name)


def seal_parts(parts: "Iterable[memoryview | bytes]", name: str) -> int:
    """Copy several buffers into one sealed memory, one after the other."""
    descriptor = create_memfd(name)
    for part in parts:
        write_all(descriptor, memoryview(part).cast("B"))
    return add_seals(descriptor)


def seal_file(path: "os.PathLike[str]", name: str) -> int:
    """Copy a file into sealed memory, in chunks: it may be large."""
    with open(path, "rb", buffering=0) as file:
        descriptor = create_memfd(name)
        while part := file.read(COPY_CHUNK_BYTES):
            write_all(descriptor, memoryview(part))
    return add_seals(descriptor)


def write_all(descriptor: int, view: memoryview) -> None:
    """Write the whole buffer, in as many calls as it takes."""
    written = 0
    while written < len(view):
        written += os.write(descriptor, view[written : written + (1 << 28)])


def add_seals(descriptor: int) -> int:
    """Seal size and content; return the same descriptor, rewound to offset 0."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    if HAS_MEMFD:
        fcntl.fcntl(descriptor, F_ADD_SEALS, ALL_SEALS)
    return descriptor


def create_shared_memory(
    size_bytes: int, name: str, *, writer: bool
) -> tuple[int, mmap.mmap]:
    """Create shared memory of fixed size: (descriptor to send, own mapping).

    With `writer` the receiver may write too; without it only the caller can.
    The size is sealed: reading a mapping that was shrunk would raise SIGBUS.
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
    """Map memory sealed by the peer, after checking its seals and its size.

    Raises ProtocolError where it can still change, is larger than `largest_bytes` or
    cannot be read. Not a copy where memory can be sealed: the mapping lives until its
    last view is released.
    """
    if HAS_MEMFD:
        try:
            seals = fcntl.fcntl(descriptor, F_GET_SEALS)
        except OSError:
            raise ProtocolError("got a file where sealed memory was expected") from None
        if seals & ALL_SEALS != ALL_SEALS:
            raise ProtocolError("memory that is not sealed")
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > largest_bytes:
        raise ProtocolError(f"got {size_bytes} bytes, the limit is {largest_bytes}")
    try:
        if HAS_MEMFD:
            return map_read_only(descriptor)  # often half a GB
        read = bytearray()
        while len(read) < size_bytes:
            part = os.pread(descriptor, min(1 << 28, size_bytes - len(read)), len(read))
            if not part:
                break
            read += part
    except OSError:  # e.g. opened for writing only
        raise ProtocolError("the memory cannot be read") from None
    return memoryview(read)


def map_read_only(descriptor: int) -> memoryview:
    """Map sealed memory read-only, without copying it."""
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes == 0:
        return memoryview(b"")
    # MAP_PRIVATE: before Linux 6.7 write-sealed memory could not be mapped shared.
    return memoryview(
        mmap.mmap(descriptor, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ)
    )
