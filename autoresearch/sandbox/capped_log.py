"""A process's output in bounded memory: its beginning, its end and its total size."""

from collections import deque

LOG_HEAD_BYTES, LOG_TAIL_BYTES = 32 * 1024, 64 * 1024


class CappedLog:
    """The beginning and the end of a process's output, and its total size."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    def append(self, printed: bytes) -> None:
        self.total_bytes += len(printed)
        space = LOG_HEAD_BYTES - len(self._head)
        self._head += printed[:space]
        rest = printed[space:] if space > 0 else printed
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
        while self._tail_bytes - len(self._tail[0] if self._tail else b"") > (
            LOG_TAIL_BYTES
        ):
            self._tail_bytes -= len(self._tail.popleft())

    def join_kept(self) -> bytes:
        """Head and tail, with a line between them that says how much was dropped."""
        tail = b"".join(self._tail)
        missing = self.total_bytes - len(self._head) - len(tail)
        gap = b"\n[... %d bytes not kept ...]\n" % missing if missing > 0 else b""
        return bytes(self._head) + gap + tail
