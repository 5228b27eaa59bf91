"""Pools: one contract for every member, then what only many slots can do."""

import threading
import time

import pytest

from autoresearch.experiment import Device
from autoresearch.pools.inline import InlinePool
from autoresearch.pools.local import LocalPool
from tests import nights

GPUS = tuple(Device("cuda", index) for index in range(3))


def carry_out(request, device):
    """A worker whose requests are functions of the device."""
    return request(device)


MEMBERS = {
    "inline": lambda: InlinePool(carry_out, [Device()]),
    "local, one device": lambda: LocalPool(carry_out, [Device()]),
    "local, three devices": lambda: LocalPool(carry_out, GPUS),
}


@pytest.fixture(params=MEMBERS)
def pool(request):
    return MEMBERS[request.param]()


def fill(pool, work) -> int:
    """Submit as much as there is room for."""
    count = 0
    while pool.free_count:
        pool.submit(work)
        count += 1
    return count


class TestEveryPool:
    def test_has_room_at_first_and_nothing_to_wait_for(self, pool):
        assert pool.free_count == pool.capacity >= 1
        assert not pool.has_result
        assert pool.next_result() is None

    def test_hands_back_what_the_work_returned(self, pool):
        pool.submit(lambda slot: ("done on", slot.device_type))

        assert pool.next_result()[0] == "done on"
        assert pool.next_result() is None

    def test_takes_no_more_than_it_has_room_for(self, pool):
        room = pool.free_count

        assert fill(pool, lambda slot: 1) == room
        with pytest.raises(AssertionError):
            pool.submit(lambda slot: 1)
        assert [pool.next_result() for _ in range(room + 1)] == [1] * room + [None]
        assert pool.free_count == room

    def test_raises_what_the_work_raised_and_frees_its_slot(self, pool):
        room = pool.free_count

        def fall(slot):
            raise LookupError("this very one")

        pool.submit(fall)

        with pytest.raises(LookupError, match="this very one"):
            pool.next_result()
        assert pool.free_count == room
        assert pool.next_result() is None

    def test_goes_on_for_as_long_as_there_is_work(self, pool):
        for turn in range(50):
            pool.submit(lambda slot, turn=turn: turn)
            assert pool.next_result() == turn

    def test_no_result_is_lost_when_several_finish_at_once(self, pool):
        room = fill(pool, lambda slot: slot.index)
        time.sleep(0.05)

        found = [pool.next_result() for _ in range(room)]

        assert None not in found or room == 1
        assert len(set(found)) == room
        assert pool.next_result() is None


def test_inline_works_in_this_thread_and_only_when_asked():
    pool, seen = InlinePool(carry_out, [Device()]), []
    pool.submit(lambda slot: seen.append(threading.current_thread()))
    assert seen == []

    pool.next_result()

    assert seen == [threading.current_thread()]


def test_local_works_on_all_slots_at_the_same_time():
    pool, together = LocalPool(carry_out, GPUS), threading.Barrier(3, timeout=10)

    fill(pool, lambda slot: (together.wait(), slot.index))

    assert {pool.next_result()[1] for _ in range(3)} == {0, 1, 2}


def test_local_never_gives_one_slot_to_two():
    pool, lock, busy = LocalPool(carry_out, GPUS), threading.Lock(), set()

    def work(slot):
        with lock:
            assert slot.index not in busy
            busy.add(slot.index)
        time.sleep(0.002)
        with lock:
            busy.remove(slot.index)
        return slot.index

    results, left = [], 60
    while len(results) < 60:
        while pool.free_count and left:
            pool.submit(work)
            left -= 1
        results.append(pool.next_result())

    assert set(results) == {0, 1, 2}


def test_local_hands_back_whatever_finishes_first():
    pool, gate = LocalPool(carry_out, GPUS), threading.Event()
    pool.submit(lambda slot: gate.wait(10) and "slow")
    pool.submit(lambda slot: "fast")

    assert pool.next_result() == "fast"
    gate.set()
    assert pool.next_result() == "slow"


def test_local_keeps_going_when_one_of_many_fails():
    pool = LocalPool(carry_out, GPUS)
    for number in (0, 1, 2):
        pool.submit(lambda slot, number=number: 1 / number)

    found = []
    for _ in range(3):
        try:
            found.append(pool.next_result())
        except ZeroDivisionError:
            found.append("failed")

    assert sorted(map(str, found)) == ["0.5", "1.0", "failed"]
    assert pool.free_count == 3


def test_local_says_when_a_result_is_there_without_waiting_for_it():
    pool, gate = LocalPool(carry_out, GPUS), threading.Event()
    pool.submit(lambda slot: gate.wait(10))
    assert not pool.has_result

    gate.set()
    nights.wait_for(lambda: pool.has_result)

    assert pool.next_result() is True


def test_local_gives_the_device_that_was_freed_last():
    """A trial goes on where it began; a pair of runs compares on one device."""
    pool, gate = LocalPool(carry_out, GPUS), threading.Event()
    pool.submit(lambda slot: gate.wait(10))
    pool.submit(lambda slot: slot.index)
    first = pool.next_result()

    pool.submit(lambda slot: slot.index)

    assert pool.next_result() == first
    gate.set()
    pool.next_result()
