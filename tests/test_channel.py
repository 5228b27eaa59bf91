"""The channel: what the other side may send, and memory that cannot change."""

import array
import fcntl
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch import sealed_memory
from autoresearch.sandbox import ipc
from autoresearch.sandbox.ipc import Channel, ChannelClosed
from autoresearch.sealed_memory import ProtocolError

linux_only = pytest.mark.skipif(
    not sealed_memory.HAS_MEMFD, reason="sealing needs memfds"
)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    here, there = Channel(ours), Channel(theirs)
    yield here, there
    here.close()
    there.close()


def packet(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def send_descriptors(end, body: bytes, *descriptors: int):
    """Bypass Channel.send, as a hostile guest would."""
    rights = array.array("i", descriptors)
    end.sendmsg([packet(body)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# -- messages --------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order(pair):
    here, there = pair

    here.send({"say": "one", "Δ": -0.5})
    here.send({"say": "two"})

    assert there.receive(1) == ({"say": "one", "Δ": -0.5}, [])
    assert there.receive(1) == ({"say": "two"}, [])


def test_a_message_that_comes_byte_by_byte_is_still_one_message(pair):
    here, there = pair
    raw = packet(json.dumps({"say": "slow"}).encode())

    for at in range(len(raw)):
        assert there.pop_message() is None
        here.socket.send(raw[at : at + 1])
        there.fill_buffer()

    assert there.pop_message() == ({"say": "slow"}, [])


def test_the_largest_message_passes_and_one_byte_more_is_refused_by_the_sender(pair):
    here, there = pair
    frame = len(json.dumps({"text": "", "descriptors": 0}))
    text = "x" * (ipc.MAX_MESSAGE_BYTES - frame)

    sender = threading.Thread(target=here.send, args=({"text": text},))
    sender.start()

    assert there.receive(5)[0]["text"] == text
    sender.join()
    with pytest.raises(ValueError, match="too large"):
        here.send({"text": text + "x"})


@pytest.mark.parametrize("length", [ipc.MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_a_length_beyond_the_limit_is_a_protocol_error_before_the_body_comes(
    pair, length
):
    here, there = pair
    here.socket.send(struct.pack("<I", length))

    with pytest.raises(ProtocolError, match=str(length)):
        there.receive(1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe\xfa",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"{",
        b'{"a": 1} trailing',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"n": ' + b"9" * 60_000 + b"}",
        b'{"descriptors": -1}',
        b'{"descriptors": 1}',
        b'{"descriptors": true}',
        b'{"descriptors": 0.0}',
        b'{"descriptors": "0"}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_malformed_or_deeply_nested_message_is_a_protocol_error(pair, body):
    here, there = pair
    here.socket.send(packet(body))

    with pytest.raises(ProtocolError):
        there.receive(1)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_but_a_protocol_error(body):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    here, there = Channel(ours), Channel(theirs)
    try:
        here.socket.sendall(packet(body) + body)
        here.close()
        while True:
            there.receive(1)
    except (ProtocolError, ChannelClosed):
        pass
    finally:
        there.close()


def test_a_flood_of_messages_is_read_one_by_one_in_bounded_memory(pair):
    here, there = pair
    count = 20_000

    def flood():
        for number in range(count):
            here.send({"number": number})

    sender = threading.Thread(target=flood)
    sender.start()
    largest = 0
    for number in range(count):
        message, _ = there.receive(10)
        assert message == {"number": number}
        largest = max(largest, len(there._buffer))
    sender.join()

    assert largest <= 2 * ipc.MAX_MESSAGE_BYTES


def test_waiting_ends_at_the_limit(pair):
    with pytest.raises(TimeoutError):
        pair[0].receive(0.05)


def test_whether_a_message_has_begun_to_come_is_seen_without_taking_it(pair):
    here, there = pair
    before = there.poll(0.0)
    here.send({"say": "one"})
    here.send({"say": "two"})
    came = there.poll(5.0)
    first = there.receive(5.0)[0]
    left = there.poll(0.0)  # the second, read off the socket with the first

    assert (before, came, left) == (False, True, True)
    assert [first, there.receive(5.0)[0]] == [{"say": "one"}, {"say": "two"}]
    assert not there.poll(0.0)


def test_half_a_message_is_no_message_however_long_one_waits(pair):
    here, there = pair
    here.socket.send(packet(b'{"say": "hello"}')[:-1])

    with pytest.raises(TimeoutError):
        there.receive(0.05)


# -- closing ---------------------------------------------------------------------------


def test_the_other_side_gone_is_closed_for_reader_and_writer(pair):
    here, there = pair
    there.close()

    with pytest.raises(ChannelClosed):
        here.receive(1)
    with pytest.raises(ChannelClosed):
        here.send({"say": "hello?"})


def test_what_was_sent_before_closing_still_arrives(pair):
    here, there = pair
    here.send({"say": "last words"})
    here.close()

    assert there.receive(1) == ({"say": "last words"}, [])
    with pytest.raises(ChannelClosed):
        there.receive(1)


def test_hanging_up_on_unread_messages_is_closed_not_a_connection_error(pair):
    here, there = pair
    here.send({"say": "never read"})
    there.close()  # the kernel answers with a reset, as messages are waiting

    with pytest.raises(ChannelClosed):
        here.receive(1)


def test_closing_twice_is_fine_and_closes_descriptors_nobody_took(pair):
    here, there = pair
    before = open_descriptors()
    source = sealed_memory.seal_bytes(b"x")
    send_descriptors(here.socket, b'{"descriptors": 0}', source)
    os.close(source)
    there.receive(1)
    assert len(open_descriptors() - before) == 1

    there.close()
    there.close()

    assert not open_descriptors() - before


# -- descriptors -----------------------------------------------------------------------


def test_descriptors_travel_with_their_message_and_are_not_inherited(pair):
    here, there = pair
    first, second = (
        sealed_memory.seal_bytes(b"weights"),
        sealed_memory.seal_bytes(b"probe"),
    )

    here.send({"say": "submit"}, first, second)
    message, (one, two) = there.receive(1)

    assert message == {"say": "submit"}
    assert sealed_memory.map_verified(one, 100) == b"weights"
    assert sealed_memory.map_verified(two, 100) == b"probe"
    assert not os.get_inheritable(one)
    for descriptor in (first, second, one, two):
        os.close(descriptor)


@pytest.mark.parametrize("count", [5, 6, 100, 253])
def test_too_many_descriptors_in_one_message_are_a_protocol_error_and_none_leaks(
    pair, count
):
    here, there = pair
    source = sealed_memory.seal_bytes(b"x")
    before = open_descriptors()
    send_descriptors(here.socket, b'{"descriptors": 4}', *[source] * count)

    with pytest.raises(ProtocolError, match="too many"):
        there.receive(1)
    there.close()

    assert not open_descriptors() - before
    os.close(source)


def test_surplus_descriptors_cannot_pile_up_message_by_message(pair):
    here, there = pair
    source = sealed_memory.seal_bytes(b"x")
    for _ in range(5):
        send_descriptors(here.socket, b'{"descriptors": 0}', source)
    for _ in range(4):
        there.receive(1)

    with pytest.raises(ProtocolError, match="too many"):
        there.receive(1)
    os.close(source)


# -- sealed memory ---------------------------------------------------------------------


@linux_only
class TestSealedMemory:
    @pytest.fixture
    def descriptor(self):
        descriptor = sealed_memory.seal_bytes(b"sixteen bytes ok")
        yield descriptor
        os.close(descriptor)

    def test_cannot_be_written(self, descriptor):
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"X", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 16, mmap.MAP_SHARED, mmap.PROT_WRITE)

    @pytest.mark.parametrize("size", [0, 15, 17, 1 << 20])
    def test_cannot_grow_or_shrink(self, descriptor, size):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)

    @pytest.mark.parametrize("size", [1, 4096])
    def test_cannot_be_written_behind_its_end(self, descriptor, size):
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"X" * size, 16)

    def test_cannot_be_opened_anew_for_writing(self, descriptor):
        path = f"/proc/self/fd/{descriptor}"
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND):
            again = os.open(path, flags)
            with pytest.raises(PermissionError):
                os.write(again, b"X")
            os.close(again)
        with pytest.raises(PermissionError):
            os.open(path, os.O_RDWR | os.O_TRUNC)
        assert sealed_memory.map_verified(descriptor, 16) == b"sixteen bytes ok"

    def test_cannot_have_its_seals_changed(self, descriptor):
        with pytest.raises(PermissionError):
            fcntl.fcntl(
                descriptor, sealed_memory.F_ADD_SEALS, sealed_memory.SEAL_FUTURE_WRITE
            )

    def test_cannot_have_holes_punched_by_another_process(self, descriptor):
        punch = (
            "import ctypes, sys\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "long = ctypes.c_long\n"
            f"done = libc.fallocate({descriptor}, 3, long(0), long(16))\n"
            "sys.exit(0 if done == -1 and ctypes.get_errno() == 1 else 1)\n"
        )
        done = subprocess.run((sys.executable, "-c", punch), pass_fds=(descriptor,))

        assert done.returncode == 0
        assert sealed_memory.map_verified(descriptor, 16) == b"sixteen bytes ok"

    def test_is_refused_when_it_is_not_sealed_or_not_wholly(self):
        for seals in (
            0,
            sealed_memory.SEAL_WRITE,
            sealed_memory.ALL_SEALS & ~sealed_memory.SEAL_SEAL,
        ):
            descriptor = sealed_memory.create_memfd("loose")
            os.write(descriptor, b"changes later")
            fcntl.fcntl(descriptor, sealed_memory.F_ADD_SEALS, seals)
            with pytest.raises(ProtocolError, match="not sealed"):
                sealed_memory.map_verified(descriptor, 100)
            os.close(descriptor)

    def test_is_refused_when_it_is_no_memory_at_all(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"on disk")
        reads, writes = os.pipe()
        file = os.open(path, os.O_RDWR)
        folder = os.open(tmp_path, os.O_RDONLY)
        nowhere = os.open(path, os.O_PATH)
        for descriptor in (file, folder, nowhere, reads, writes):
            with pytest.raises(ProtocolError):
                sealed_memory.map_verified(descriptor, 100)
            os.close(descriptor)

    def test_is_refused_when_it_cannot_be_read(self, descriptor):
        write_only = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)

        with pytest.raises(ProtocolError, match="cannot be read"):
            sealed_memory.map_verified(write_only, 100)
        os.close(write_only)

    def test_is_refused_when_it_is_too_large_without_being_read(self):
        descriptor = sealed_memory.create_memfd("sparse")
        os.ftruncate(descriptor, 1 << 45)
        fcntl.fcntl(descriptor, sealed_memory.F_ADD_SEALS, sealed_memory.ALL_SEALS)

        with pytest.raises(ProtocolError, match="limit is 1000"):
            sealed_memory.map_verified(descriptor, 1000)
        os.close(descriptor)

    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 40_000])
    def test_comes_out_as_it_went_in(self, content):
        descriptor = sealed_memory.seal_bytes(content)

        assert sealed_memory.map_verified(descriptor, len(content)) == content
        assert bytes(sealed_memory.map_read_only(descriptor)) == content
        os.close(descriptor)

    def test_is_there_after_its_descriptors_are_closed(self):
        descriptor = sealed_memory.seal_bytes(b"sixteen bytes ok")
        found = sealed_memory.map_verified(descriptor, 16)
        os.close(descriptor)

        assert found == b"sixteen bytes ok"
        assert found.readonly

    @pytest.mark.parametrize("size_bytes", [0, 5, sealed_memory.COPY_CHUNK_BYTES + 1])
    def test_can_be_made_of_a_file(self, tmp_path, size_bytes):
        path = tmp_path / "file"
        path.write_bytes(b"x" * size_bytes)

        descriptor = sealed_memory.seal_file(path, "weights")

        assert sealed_memory.map_verified(descriptor, size_bytes) == path.read_bytes()
        os.close(descriptor)

    def test_looks_read_only_to_who_maps_it(self, descriptor):
        look = sealed_memory.map_read_only(descriptor)

        assert look.readonly
        with pytest.raises(TypeError):
            look[0] = 0


# -- shared memory ---------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("writer", [True, False])
def test_shared_memory_keeps_its_size_whoever_holds_it(writer):
    descriptor, mapping = sealed_memory.create_shared_memory(
        4096, "both", writer=writer
    )

    for size in (0, 4095, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    assert len(mapping) == 4096
    os.close(descriptor)


@linux_only
def test_shared_memory_for_reading_shows_changes_but_takes_none():
    descriptor, mapping = sealed_memory.create_shared_memory(
        4096, "questions", writer=False
    )
    theirs = mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ)

    mapping[:5] = b"asked"

    assert theirs[:5] == b"asked"
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"forged", 0)
    os.close(descriptor)


@linux_only
def test_shared_memory_for_writing_carries_answers_back():
    descriptor, mapping = sealed_memory.create_shared_memory(
        4096, "answers", writer=True
    )
    theirs = mmap.mmap(descriptor, 4096)

    theirs[:4] = b"done"

    assert mapping[:4] == b"done"
    os.close(descriptor)
