"""Messages between harness and sandboxed process: JSON and sealed memory on a socket.

A message is a 4-byte length and a JSON object of at most 64 KiB, with file descriptors
as ancillary data. Bulk data never goes through the socket: it is passed as sealed
memory (a memfd), which can no longer change, so that what was checked is what is used.

Covered: oversized, malformed, deeply nested or flooding messages, surplus file
descriptors, memory that is not sealed or too large. Not covered: what a message means;
every value in it is an unverified statement of its sender. Where there are no memfds
(macOS), an unlinked temporary file takes their place and the receiver copies it.
"""

import json
import os
import select
import socket
import struct
import time
from typing import Any

from autoresearch.sealed_memory import ProtocolError

Message = dict[str, Any]  # from json.loads; the receiver checks every value it uses

MAX_MESSAGE_BYTES = 64 * 1024
MAX_DESCRIPTORS = 4  # in one message
LENGTH_PREFIX = struct.Struct("<I")


class ChannelClosed(Exception):
    """The peer has closed the connection."""


class Channel:
    """One end of the connection."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def send(self, message: Message, *descriptors: int) -> None:
        """Send one message; blocks until the kernel has taken it.

        Raises ChannelClosed; ProtocolError where the socket has a timeout and the peer
        does not read in time; ValueError for a message that is too large.
        """
        body = json.dumps({**message, "descriptors": len(descriptors)}).encode()
        if len(body) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(body)} bytes is too large to send")
        packet = LENGTH_PREFIX.pack(len(body)) + body
        try:
            sent = (
                socket.send_fds(self.socket, [packet], descriptors)
                if descriptors
                else self.socket.send(packet)
            )
            self.socket.sendall(packet[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None
        except (TimeoutError, BlockingIOError):
            raise ProtocolError("the peer does not read its messages") from None

    def receive(self, limit_seconds: float | None = None) -> tuple[Message, list[int]]:
        """Wait for the next message and its file descriptors.

        Raises TimeoutError, ChannelClosed or ProtocolError.
        """
        deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        while (received := self.pop_message()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            self.fill_buffer()
        return received

    def poll(self, limit_seconds: float) -> bool:
        """Whether part of a message has arrived, or arrives within this time."""
        end = select.poll()
        end.register(self.socket, select.POLLIN)
        return bool(self._buffer) or bool(end.poll(1000 * limit_seconds))

    def fill_buffer(self) -> None:
        """Read what has arrived; block where nothing has."""
        try:
            arrived, descriptors, flags, _ = socket.recv_fds(
                self.socket, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS
            )
        except ConnectionResetError:
            raise ChannelClosed from None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MAX_DESCRIPTORS:
            raise ProtocolError("too many file descriptors")
        if not arrived:
            raise ChannelClosed
        self._buffer += arrived

    def pop_message(self) -> tuple[Message, list[int]] | None:
        """Remove and return the next complete message; None where there is none yet."""
        if len(self._buffer) < LENGTH_PREFIX.size:
            return None
        (length,) = LENGTH_PREFIX.unpack_from(self._buffer)
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes")
        end = LENGTH_PREFIX.size + length
        if len(self._buffer) < end:
            return None
        message = parse_message(bytes(self._buffer[LENGTH_PREFIX.size : end]))
        del self._buffer[:end]
        count = message.pop("descriptors", 0)
        if type(count) is not int or not 0 <= count <= len(self._descriptors):
            raise ProtocolError("a message without its file descriptors")
        own, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return message, own

    def close(self) -> None:
        """Close the socket and every descriptor not yet returned with a message."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        self.socket.close()


def parse_message(body: bytes) -> Message:
    """Parse a JSON object; raises ProtocolError."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("not a JSON object")
    return message
