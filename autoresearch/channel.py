"""How harness and guest talk: small JSON messages and sealed memory over one socket.

A message is a 4-byte length and a JSON object of at most 64 KiB; file descriptors
travel beside it. Bulk data never goes through the socket: it is handed over as memory
that cannot change any more (a sealed memfd), so what was checked is what is used.

Covered: oversized, malformed, deeply nested or flooding messages, surplus file
descriptors, memory that is not sealed or too large. Not covered: what a message means;
every value in it is a claim of its sender. Where there are no memfds (macOS), an
unlinked temporary file takes their place and the receiver copies it.
"""

import fcntl
import json
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]  # what json.loads gives; every use checks what it takes

LARGEST_MESSAGE_BYTES = 64 * 1024
MOST_DESCRIPTORS = 4  # in one message
LENGTH = struct.Struct("<I")

# <linux/fcntl.h>; the fcntl module names them only where libc does.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 1, 2, 4, 8
SEAL_FUTURE_WRITE = 16
ALL_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE
COPY_BYTES = 16 << 20  # at a time: what a processor's caches hold
HAS_MEMFD = hasattr(os, "memfd_create")


class Junk(Exception):
    """The other side sent something that is not a message of this protocol."""


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end of the conversation."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._bytes = bytearray()
        self._descriptors: list[int] = []

    def send(self, message: Message, *descriptors: int) -> None:
        """Send one message; blocks until the kernel took it.

        On a socket with a time limit: Junk from one that does not read.
        """
        body = json.dumps({**message, "descriptors": len(descriptors)}).encode()
        if len(body) > LARGEST_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(body)} bytes is too large to send")
        packet = LENGTH.pack(len(body)) + body
        try:
            sent = (
                socket.send_fds(self.socket, [packet], descriptors)
                if descriptors
                else self.socket.send(packet)
            )
            self.socket.sendall(packet[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None
        except (TimeoutError, BlockingIOError):
            raise Junk("it does not read what it is sent") from None

    def receive(self, limit_seconds: float | None = None) -> tuple[Message, list[int]]:
        """Wait for the next message, or raise TimeoutError, Closed or Junk."""
        deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        while (found := self.take()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            self.read()
        return found

    def waits(self, limit_seconds: float) -> bool:
        """Whether a message has begun to come, or does within so many seconds."""
        end = select.poll()
        end.register(self.socket, select.POLLIN)
        return bool(self._bytes) or bool(end.poll(1000 * limit_seconds))

    def read(self) -> None:
        """Take what has arrived off the socket; block for it if nothing has."""
        try:
            arrived, descriptors, flags, _ = socket.recv_fds(
                self.socket, LARGEST_MESSAGE_BYTES, MOST_DESCRIPTORS
            )
        except ConnectionResetError:
            raise Closed from None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MOST_DESCRIPTORS:
            raise Junk("too many file descriptors")
        if not arrived:
            raise Closed
        self._bytes += arrived

    def take(self) -> tuple[Message, list[int]] | None:
        """The next whole message that has been read, or None so far."""
        if len(self._bytes) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._bytes)
        if length > LARGEST_MESSAGE_BYTES:
            raise Junk(f"a message of {length} bytes")
        end = LENGTH.size + length
        if len(self._bytes) < end:
            return None
        message = parse(bytes(self._bytes[LENGTH.size : end]))
        del self._bytes[:end]
        count = message.pop("descriptors", 0)
        if type(count) is not int or not 0 <= count <= len(self._descriptors):
            raise Junk("a message without its file descriptors")
        mine, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return message, mine

    def close(self) -> None:
        """Close the socket and whatever descriptors nobody took."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self.socket.close()


def parse(body: bytes) -> Message:
    """Bytes -> JSON object, or Junk."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise Junk("not JSON") from None
    if not isinstance(message, dict):
        raise Junk("not a JSON object")
    return message


# -- memory that cannot change ---------------------------------------------------------


def anonymous(name: str) -> int:
    """A new file descriptor of memory that has no path."""
    if HAS_MEMFD:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile  # a slow import, for a minority

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def sealed(whole: "memoryview | bytes", name: str = "sealed") -> int:
    """Copy bytes into memory that nobody can change any more, the sender included."""
    return sealed_parts([whole], name)


def sealed_parts(parts: "Iterable[memoryview | bytes]", name: str) -> int:
    """The same of what lies in several pieces, one after the other."""
    descriptor = anonymous(name)
    for part in parts:
        write_all(descriptor, memoryview(part).cast("B"))
    return sealed_for_good(descriptor)


def sealed_file(path: "os.PathLike[str]", name: str) -> int:
    """The same of a file, which may be larger than one likes to hold twice."""
    with open(path, "rb", buffering=0) as file:
        descriptor = anonymous(name)
        while part := file.read(COPY_BYTES):
            write_all(descriptor, memoryview(part))
    return sealed_for_good(descriptor)


def write_all(descriptor: int, view: memoryview) -> None:
    """Write, however many calls it takes."""
    written = 0
    while written < len(view):
        written += os.write(descriptor, view[written : written + (1 << 28)])


def sealed_for_good(descriptor: int) -> int:
    """The same descriptor, at its start, of what cannot change any more."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    if HAS_MEMFD:
        fcntl.fcntl(descriptor, F_ADD_SEALS, ALL_SEALS)
    return descriptor


def shared(size_bytes: int, name: str, *, writer: bool) -> tuple[int, mmap.mmap]:
    """Memory of fixed size for two processes: (descriptor to send, own mapping).

    With `writer` the receiver may write too; without it only the caller can.
    The size is sealed: a shrunk mapping would kill its reader with SIGBUS.
    """
    descriptor = anonymous(name)
    os.ftruncate(descriptor, size_bytes)
    mapping = mmap.mmap(descriptor, size_bytes)
    if HAS_MEMFD:
        seals = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW
        seals |= 0 if writer else SEAL_FUTURE_WRITE
        fcntl.fcntl(descriptor, F_ADD_SEALS, seals)
    return descriptor, mapping


def unseal(descriptor: int, largest_bytes: int) -> memoryview:
    """What the other side sealed; Junk if it can still change or is too large.

    Not a copy where memory can be sealed: it stays until the last look at it is gone.
    """
    if HAS_MEMFD:
        try:
            seals = fcntl.fcntl(descriptor, F_GET_SEALS)
        except OSError:
            raise Junk("a file where sealed memory was expected") from None
        if seals & ALL_SEALS != ALL_SEALS:
            raise Junk("memory that is not sealed")
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > largest_bytes:
        raise Junk(f"{size_bytes} bytes where at most {largest_bytes} are taken")
    try:
        if HAS_MEMFD:
            return view(descriptor)  # half a GB is common
        read = bytearray()
        while len(read) < size_bytes:
            part = os.pread(descriptor, min(1 << 28, size_bytes - len(read)), len(read))
            if not part:
                break
            read += part
    except OSError:  # it may have been opened for writing only
        raise Junk("memory that cannot be read") from None
    return memoryview(read)


def view(descriptor: int) -> memoryview:
    """A read-only look at sealed memory, without copying it."""
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes == 0:
        return memoryview(b"")
    # MAP_PRIVATE: before Linux 6.7 a shared mapping of write-sealed memory was refused.
    return memoryview(
        mmap.mmap(descriptor, size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ)
    )
