"""Sandboxed processes that misbehave, and what is left of them. Real processes only."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.errors import RunStopped
from autoresearch.experiment import Device
from autoresearch.sandbox import capped_log, process, supervisor
from autoresearch.sandbox.capped_log import CappedLog
from autoresearch.sandbox.process import (
    LimitExceeded,
    ProcessExited,
    ResourceLimits,
    SandboxedProcess,
    SandboxSpec,
    StopFlag,
    sweep,
)
from autoresearch.sealed_memory import ProtocolError, map_verified

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux hands orphans to the supervisor"
)
REPOSITORY = Path(__file__).parent.parent
SOON = 15.0  # seconds; far more than anything here takes on an idle machine

# What a hostile train.py begins with: the bare channel, without asking the package.
LINK = """
import os, signal, subprocess, sys, time
import autoresearch.guest
link = autoresearch.guest.runtime._link
"""

# Four kinds of offspring that outlive their parent if they can.
FAMILY = (
    LINK
    + """
def spawn(kind):
    if os.fork():
        return
    if kind != "child":
        os.setsid()
    if kind == "daemon" and os.fork():
        os._exit(0)
    if kind == "deaf":
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
    open(f"{kind}.up", "w").close()
    while True:
        time.sleep(60)

for kind in ("child", "setsid", "daemon", "deaf"):
    spawn(kind)
while sum(name.endswith(".up") for name in os.listdir()) < 4:
    time.sleep(0.005)
link.send({"say": "family"})
"""
)


@pytest.fixture
def lab(tmp_path):
    yield tmp_path
    sweep(tmp_path)  # whatever a failed test left


def survivors(lab: Path) -> set[int]:
    """Processes alive that carry the lab's mark, supervisors too."""
    mark, found = (
        f"\0{process.MARK_VARIABLE}={process.compute_mark(lab)}".encode(),
        set(),
    )
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if mark in b"\0" + Path(f"/proc/{name}/environ").read_bytes():
                    found.add(int(name))
            except OSError:
                pass
    return found


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


@contextmanager
def running(lab: Path, source: str, *, name="guest", stop=None, **limits):
    """A guest with this train.py, greeted."""
    folder = lab / name
    folder.mkdir()
    (folder / "train.py").write_text(source)
    allowed = ResourceLimits(**({"memory_gb": 4.0} | limits))
    with SandboxedProcess(
        folder, lab=lab, device=Device(), limits=allowed, stop=stop or StopFlag()
    ) as guest:
        guest.channel.send({"mode": "train"})
        yield guest


def hear(guest: SandboxedProcess, seconds: float = SOON) -> dict:
    return guest.receive(time.monotonic() + seconds)[0]


def hear_all(guest: SandboxedProcess, seconds: float = SOON) -> None:
    """Listen until something ends it."""
    deadline = time.monotonic() + seconds
    while True:
        guest.receive(deadline)


def ending(guest: SandboxedProcess) -> int:
    """Wait until the guest is gone; its exit code."""
    with pytest.raises(ProcessExited) as gone:
        hear_all(guest)
    return gone.value.exit_code


# -- talking ---------------------------------------------------------------------------


def test_a_guest_and_its_harness_talk(lab):
    source = (
        LINK
        + "link.send({'say': 'hello', 'heard': autoresearch.guest.runtime._hello})\n"
    )

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "hello", "heard": {"mode": "train"}}


def test_the_last_message_before_the_exit_still_arrives(lab):
    source = LINK + "for n in range(50): link.send({'n': n})\nos._exit(0)\n"

    with running(lab, source) as guest:
        time.sleep(0.5)  # by now it is long gone
        assert [hear(guest)["n"] for _ in range(50)] == list(range(50))
        assert ending(guest) == 0


def test_descriptors_of_the_last_message_still_arrive(lab):
    source = (
        LINK
        + "from autoresearch import sealed_memory\n"
        + "link.send({'say': 'submit'}, sealed_memory.seal_bytes(b'weights'))\nos._exit(0)\n"
    )

    with running(lab, source) as guest:
        time.sleep(0.3)
        _, (descriptor,) = guest.receive(time.monotonic() + SOON)
        assert map_verified(descriptor, 100) == b"weights"
        os.close(descriptor)


def test_what_was_printed_before_the_exit_is_in_the_log(lab):
    with running(lab, "print('to out')\nraise SystemExit('to err')\n") as guest:
        assert ending(guest) == 1
        assert guest.log.join_kept() == b"to out\nto err\n"


def test_what_was_printed_before_the_kill_is_in_the_log(lab):
    source = LINK + "print('still training')\nlink.send({})\ntime.sleep(600)\n"

    with running(lab, source) as guest:
        hear(guest)

    assert guest.log.join_kept() == b"still training\n"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("1 / 0", 1),
        ("import os; os._exit(255)", 255),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
        ("import sys; sys.stdout.close(); sys.exit(3)", 3),
        ("import os; os.closerange(0, 100); os._exit(4)", 4),
    ],
)
def test_exit_codes_and_signals_are_reported(lab, source, code):
    with running(lab, source) as guest:
        assert ending(guest) == code


def test_a_guest_that_says_nothing_is_waited_for_until_the_deadline(lab):
    with running(lab, "import time; time.sleep(600)") as guest:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            hear(guest, 0.3)
        assert 0.3 <= time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "noise",
    [
        "link.socket.send(b'\\xff' * 100)",
        "link.socket.send(b'\\x04\\0\\0\\0nope')",
        "import socket; socket.send_fds(link.socket, [b'x'], [0] * 9)",
    ],
)
def test_nonsense_on_the_channel_is_a_protocol_error(lab, noise):
    with (
        running(lab, LINK + noise + "\ntime.sleep(600)\n") as guest,
        pytest.raises(ProtocolError),
    ):
        hear(guest)


def test_a_flood_of_messages_is_a_protocol_error_in_the_end(lab, monkeypatch):
    monkeypatch.setattr(process, "MAX_MESSAGES", 2000)
    source = LINK + "while True: link.send({'say': 'progress'})\n"

    with running(lab, source) as guest:
        for _ in range(2000):
            hear(guest)
        with pytest.raises(ProtocolError, match="more than 2000 messages"):
            hear(guest)


def test_a_flood_cannot_outlast_the_deadline(lab):
    source = LINK + "while True: link.send({'say': 'progress', 'x': 'x' * 60_000})\n"

    with running(lab, source) as guest:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            hear_all(guest, 1)
        assert 1 <= time.monotonic() - begun < 2


def test_a_second_ctrl_c_stops_the_waiting(lab):
    stop = StopFlag()
    with running(lab, "import time; time.sleep(600)", stop=stop) as guest:
        stop.now = True
        with pytest.raises(RunStopped):
            hear(guest)

    assert not survivors(lab)


# -- what a guest gets to see ----------------------------------------------------------


def test_the_environment_is_the_allow_list_and_nothing_else(lab, monkeypatch):
    for name in (
        *("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"),
        *("SSH_AUTH_SOCK", "PYTHONPATH", "LD_PRELOAD_X", "GIT_DIR", "HOME", "USER"),
    ):
        monkeypatch.setenv(name, f"planted in {name}")
    source = LINK + "link.send({'seen': dict(os.environ)})\n"

    with running(lab, source) as guest:
        seen = hear(guest)["seen"]

    assert "planted" not in str(seen)
    assert set(seen) - {"LC_CTYPE"} <= {
        *process.PASSED_VARIABLES,
        *process.THREAD_VARIABLES,
        *(
            "HOME",
            "TMPDIR",
            "TORCHINDUCTOR_CACHE_DIR",
            "USER",
            "OMP_NUM_THREADS",
            process.MARK_VARIABLE,
        ),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"),
    }
    assert seen["HOME"] == seen["TMPDIR"] == str(lab / "guest")


def test_a_slot_says_which_gpu_and_how_many_threads():
    def seen_by(slot):
        return process.build_environment(
            SandboxSpec(Path("/x"), Path("/lab"), slot, ResourceLimits(1.0))
        )

    seen = seen_by(Device("cuda", 3, threads=5))

    assert seen["CUDA_VISIBLE_DEVICES"] == "3"
    assert seen["OMP_NUM_THREADS"] == "5"
    assert "CUDA_VISIBLE_DEVICES" not in seen_by(Device())


@linux_only
def test_no_descriptor_is_inherited_but_the_three_and_the_channel(lab):
    source = (
        LINK
        + "seen = {}\n"
        + "for name in os.listdir('/proc/self/fd'):\n"
        + "    try:\n"
        + "        seen[name] = os.readlink(f'/proc/self/fd/{name}')\n"
        + "    except OSError:\n"
        + "        pass  # the one that listed them\n"
        + "link.send({'seen': seen, 'channel': link.socket.fileno()})\n"
    )
    secret = os.open(lab, os.O_RDONLY)
    os.set_inheritable(secret, True)

    with running(lab, source) as guest:
        said = hear(guest)
    os.close(secret)

    seen = said["seen"]
    assert set(seen) == {"0", "1", "2", str(said["channel"])}
    assert seen["0"] == "/dev/null"
    assert seen["1"].startswith("pipe:")
    assert seen["1"] == seen["2"]


def test_a_guest_cannot_speak_for_its_supervisor(lab):
    source = (
        LINK
        + "for fd in range(3, 64):\n"
        + "    if fd != link.socket.fileno():\n"
        + "        try:\n"
        + "            os.write(fd, b'exited 0\\n')\n"
        + "        except OSError:\n"
        + "            pass\n"
        + "link.send({'say': 'still here'})\ntime.sleep(600)\n"
    )

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "still here"}
        with pytest.raises(TimeoutError):
            hear(guest, 0.3)


def test_a_guest_works_in_its_own_folder_without_core_dumps(lab):
    source = (
        LINK
        + "import resource\n"
        + "limits = [resource.getrlimit(x) for x in (4, 1, 6)]  # core, file size, processes\n"
        + "link.send({'cwd': os.getcwd(), 'limits': limits, 'argv': sys.argv})\n"
    )

    with running(lab, source, disk_gb=0.5) as guest:
        said = hear(guest)

    assert said["cwd"] == str(lab / "guest")
    assert said["argv"] == ["train.py"]
    if sys.platform == "linux":
        core, size, processes = said["limits"]
        assert core == [1, 1]  # of one byte: not even to a program that collects them
        assert size == [500_000_000, 500_000_000]
        assert 0 < processes[1] <= 8192


# -- the tree dies whole ---------------------------------------------------------------


@linux_only
def test_the_harness_runs_before_its_guests_while_there_are_any(lab):
    before = os.sched_getscheduler(0)

    with running(
        lab, LINK + "link.send({'policy': os.sched_getscheduler(0)})"
    ) as guest:
        during = os.sched_getscheduler(0)
        guests = hear(guest)["policy"]

    if during == before:
        pytest.skip("only root may ask for it")
    assert during & os.SCHED_RR
    assert guests == before == os.sched_getscheduler(0) == os.SCHED_OTHER


@linux_only
def test_killed_at_the_wall_the_whole_family_dies(lab):
    with running(lab, FAMILY + "time.sleep(600)\n") as guest:
        assert hear(guest) == {"say": "family"}
        assert len(survivors(lab)) == 6  # supervisor, guest and four more
        with pytest.raises(TimeoutError):
            hear(guest, 0.1)
        begun = time.monotonic()

    assert not survivors(lab)
    assert time.monotonic() - begun < supervisor.GIVE_UP_SECONDS


@linux_only
@pytest.mark.parametrize(
    "way", ["os._exit(0)", "1 / 0", "os.kill(os.getpid(), 9)", "raise SystemExit"]
)
def test_when_the_guest_leaves_by_itself_its_family_does_not_stay(lab, way):
    with running(lab, FAMILY + way) as guest:
        assert hear(guest) == {"say": "family"}
        ending(guest)
        # Already now, before anybody said kill: only the supervisor may still be leaving.
        assert len(survivors(lab)) <= 1

    assert not survivors(lab)


HARNESS = """
import sys, time
from pathlib import Path
from autoresearch.experiment import Device
from autoresearch.sandbox.process import ResourceLimits, SandboxedProcess, StopFlag
lab = Path(sys.argv[1])
guest = SandboxedProcess(
    lab / "guest", lab=lab, device=Device(), limits=ResourceLimits(4.0), stop=StopFlag()
)
guest.channel.send({"mode": "train"})
guest.receive(time.monotonic() + 60)
print("up", flush=True)
guest.receive(time.monotonic() + 600)
"""


@contextmanager
def harness(lab: Path, source: str):
    """A harness process of its own, whose guest has its family up."""
    (lab / "guest").mkdir()
    (lab / "guest" / "train.py").write_text(source)
    process = subprocess.Popen(
        (sys.executable, "-c", HARNESS, str(lab)), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@linux_only
def test_when_the_harness_is_killed_the_whole_family_dies(lab):
    with harness(lab, FAMILY + "time.sleep(600)\n") as process:
        assert len(survivors(lab)) == 6

        process.send_signal(signal.SIGKILL)
        process.wait()

        wait_for(lambda: not survivors(lab), "the death of all")


@linux_only
def test_when_the_harness_is_only_stopped_the_family_lives_on(lab):
    with harness(lab, FAMILY + "time.sleep(600)\n") as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert len(survivors(lab)) == 6

        process.send_signal(signal.SIGKILL)
        wait_for(lambda: not survivors(lab), "the death of all")


@linux_only
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_supervisor_shrugs_off_what_its_guest_asks_of_it(lab, number):
    source = FAMILY + f"os.kill(os.getppid(), signal.{number})\nraise SystemExit(7)\n"

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "family"}
        assert ending(guest) == 7

    wait_for(lambda: not survivors(lab), "the death of all")


@linux_only
def test_a_guest_that_kills_its_supervisor_is_swept_with_its_family(lab):
    source = FAMILY + "os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)\n"

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "family"}
        assert ending(guest) == -signal.SIGKILL

    wait_for(lambda: not survivors(lab), "the death of all")


@linux_only
def test_a_guest_that_stops_its_supervisor_is_swept_with_its_family(lab, monkeypatch):
    monkeypatch.setattr(
        supervisor, "GIVE_UP_SECONDS", -4.5
    )  # the harness waits half a second
    source = FAMILY + "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)\n"

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "family"}
        time.sleep(0.2)
        monkeypatch.setattr(process, "sweep", patient_sweep)

    wait_for(lambda: not survivors(lab), "the death of all")


def patient_sweep(lab, folder=None):
    """The real one, with its own time limit although the test shortened the other."""
    supervisor.GIVE_UP_SECONDS = 5.0
    return sweep(lab, folder)


@linux_only
def test_supervisor_and_harness_both_killed_the_next_start_sweeps_up(lab):
    with harness(
        lab, FAMILY + "os.kill(os.getppid(), 9)\ntime.sleep(600)\n"
    ) as process:
        wait_for(lambda: len(survivors(lab)) == 5, "the death of the supervisor")
        process.kill()
        process.wait()

        assert sweep(lab) == 5

        wait_for(lambda: not survivors(lab), "the death of all")
        assert sweep(lab) == 0


@linux_only
def test_the_sweep_of_one_guest_spares_its_neighbours_and_other_labs(lab, tmp_path):
    elsewhere = tmp_path / "another lab"
    elsewhere.mkdir()
    sleeper = LINK + "link.send({'say': 'up'})\ntime.sleep(600)\n"
    assassin = LINK + "os.kill(os.getppid(), 9)\ntime.sleep(600)\n"

    with running(lab, sleeper, name="a") as a, running(elsewhere, sleeper) as b:
        for guest in (a, b):
            assert hear(guest) == {"say": "up"}
        before = survivors(lab) | survivors(elsewhere)
        with running(lab, assassin, name="c") as c:
            ending(c)

        # Killed, but on a busy machine not yet scheduled to die.
        wait_for(
            lambda: survivors(lab) | survivors(elsewhere) == before, "its death alone"
        )

    assert not survivors(elsewhere)


# Forks and exits all the time under a new session: no list of it is ever up to date.
COMET = """
def comet():
    for _ in range(20_000):  # not for ever, lest the test's failure outlive the test
        if os.fork():
            os._exit(0)
        os.setsid()

for _ in range(3):
    if os.fork() == 0:
        comet()
        os._exit(0)
"""


@linux_only
def test_a_comet_that_forks_faster_than_it_is_listed_is_caught(lab):
    source = LINK + COMET + "link.send({'say': 'up'})\ntime.sleep(600)\n"

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "up"}
        time.sleep(0.2)
        begun = time.monotonic()

    took = time.monotonic() - begun
    assert not survivors(lab)
    assert took < supervisor.GIVE_UP_SECONDS
    print(f"three comets caught in {1000 * took:.0f} ms")


@linux_only
def test_a_storm_of_processes_ends_with_the_kill(lab):
    storm = "for _ in range(8): os.fork()\nos.setsid()\nwhile True: time.sleep(0.05)\n"
    source = LINK + f"if os.fork() == 0:\n    exec({storm!r})\n"
    source += "time.sleep(0.5)\nlink.send({'say': 'up'})\ntime.sleep(600)\n"

    with running(lab, source) as guest:
        assert hear(guest) == {"say": "up"}
        assert len(survivors(lab)) > 200
        begun = time.monotonic()

    took = time.monotonic() - begun
    assert not survivors(lab)
    print(f"256 processes killed in {1000 * took:.0f} ms")


def test_killing_twice_is_fine_and_leaks_nothing(lab):
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None

    with running(lab, "import time; time.sleep(600)") as guest:
        guest.kill()
        guest.kill()

    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


@linux_only
@pytest.mark.parametrize("turn", range(5))
def test_leaving_at_the_same_moment_as_being_killed_is_no_race(lab, turn):
    with running(lab, LINK + "link.send({})\nos._exit(0)\n") as guest:
        hear(guest)
        time.sleep(turn * 0.01)

    assert not survivors(lab)


@linux_only
def test_a_harness_that_looks_late_at_an_exit_gets_it_whole(lab):
    with running(lab, LINK + "print('words')\nlink.send({'n': 1})\n") as guest:
        # Control, channel and log are all ready and all at their end by now.
        wait_for(lambda: guest._process.poll() is not None, "the supervisor's exit")
        assert hear(guest) == {"n": 1}
        assert ending(guest) == 0
        assert guest.log.join_kept() == b"words\n"


# -- limits ----------------------------------------------------------------------------


def test_too_much_memory_is_noticed_also_when_it_is_a_childs(lab, monkeypatch):
    monkeypatch.setattr(process, "CHECK_EVERY_SECONDS", 0.05)
    source = (
        LINK
        + "if os.fork() == 0:\n"
        + "    os.setsid()\n"
        + "    hoard = b'x' * 200_000_000\n"
        + "time.sleep(600)\n"
    )

    with (
        running(lab, source, memory_gb=0.15) as guest,
        pytest.raises(LimitExceeded, match=r"more than 0\.15 GB of memory") as over,
    ):
        hear(guest)

    assert over.value.resource == "memory"
    assert guest.peak_memory_gb > 0.15


def test_memory_is_measured_as_the_peak(lab, monkeypatch):
    monkeypatch.setattr(process, "CHECK_EVERY_SECONDS", 0.02)
    source = (
        LINK
        + "hoard = b'x' * 150_000_000\ntime.sleep(0.4)\ndel hoard\ntime.sleep(0.2)\n"
        + "link.send({})\n"
    )

    with running(lab, source) as guest:
        hear(guest)
        assert 0.15 < guest.peak_memory_gb < 0.3


def test_hundreds_of_megabytes_of_output_leave_a_small_log_and_flat_memory(lab):
    line = "x" * 99
    source = f"print('first')\nfor _ in range(3000): print('{line}\\n' * 1000)\n"
    source += "print('last')\n"
    me = psutil.Process()

    with running(lab, source, log_bytes=1 << 30) as guest:
        before = me.memory_info().rss
        assert ending(guest) == 0
        grown = me.memory_info().rss - before

    log = guest.log.join_kept()
    assert guest.log.total_bytes > 300_000_000
    assert grown < 20_000_000
    assert len(log) < 300_000
    assert log.startswith(b"first\n")
    assert log.endswith(b"last\n")
    assert b"bytes not kept" in log


def test_printing_beyond_the_limit_ends_the_run(lab):
    source = "while True: print('x' * 100_000)"

    with (
        running(lab, source, log_bytes=10_000_000) as guest,
        pytest.raises(LimitExceeded, match="printed more than 10 MB"),
    ):
        hear(guest)

    assert len(guest.log.join_kept()) < 300_000


def test_writing_beyond_the_limit_ends_the_run(lab, monkeypatch):
    monkeypatch.setattr(process, "CHECK_EVERY_SECONDS", 0.05)
    source = (
        LINK
        + "os.makedirs('a/b')\n"
        + "for n in range(20):\n"
        + "    with open(f'a/b/{n}', 'wb') as file: file.write(b'x' * 1_000_000)\n"
        + "time.sleep(600)\n"
    )

    with (
        running(lab, source, disk_gb=0.01) as guest,
        pytest.raises(LimitExceeded, match=r"more than 0\.01 GB to disk"),
    ):
        hear(guest)


def test_no_single_file_grows_beyond_the_limit(lab):
    source = (
        LINK
        + "try:\n"
        + "    with open('large', 'wb') as file: file.write(b'x' * 20_000_000)\n"
        + "except OSError as error:\n"
        + "    link.send({'errno': error.errno})\n"
    )

    # The watch over the whole folder may see the full file before the guest says so.
    with running(lab, source, disk_gb=0.01) as guest, suppress(LimitExceeded):
        assert hear(guest) == {"errno": 27}  # EFBIG

    assert (lab / "guest" / "large").stat().st_size <= 10_000_000


def test_links_and_sparse_files_count_what_they_take(tmp_path):
    (tmp_path / "real").write_bytes(b"x" * 100_000)
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "up").symlink_to("/")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)

    size_bytes, files = process.measure_folder(tmp_path)

    assert 100_000 <= size_bytes < 300_000
    assert files == 4
    assert process.measure_folder(tmp_path / "none") == (0, 0)


def test_empty_files_without_number_end_the_run(lab, monkeypatch):
    """They take no space, and a walk over a million of them takes seconds."""
    monkeypatch.setattr(process, "CHECK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(process, "MAX_FILES", 500)
    source = (
        "import os, time\n"
        "for number in range(1000):\n"
        "    os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))\n"
        "time.sleep(30)\n"
    )

    with (
        running(lab, source) as found,
        pytest.raises(LimitExceeded, match="more than 500 files"),
    ):
        found.receive(time.monotonic() + 20)


def test_a_look_that_takes_long_is_not_taken_where_the_wall_is_near(lab, monkeypatch):
    monkeypatch.setattr(process, "CHECK_EVERY_SECONDS", 0.01)
    looks = []

    def slowly(folder):
        looks.append(time.monotonic())
        time.sleep(0.3)
        return 0, 0

    monkeypatch.setattr(process, "measure_folder", slowly)
    with running(lab, "import time; time.sleep(30)") as found:
        deadline = time.monotonic() + 2
        with pytest.raises(TimeoutError):
            found.receive(deadline)

    assert len(looks) >= 2
    assert max(looks) + 0.3 <= deadline


def test_a_folder_too_deep_for_recursion_is_removed(tmp_path):
    place, here = tmp_path / "deep", os.open(".", os.O_RDONLY)
    place.mkdir()
    (place / "locked").mkdir(mode=0)
    (place / "away").symlink_to(tmp_path)
    os.chdir(place)
    for _ in range(3000):
        os.mkdir("down")
        os.chdir("down")
    os.fchdir(here)
    os.close(here)

    process.remove_folder(place)
    process.remove_folder(tmp_path / "none")

    assert os.listdir(tmp_path) == []


def test_a_guest_that_never_reads_does_not_hold_up_its_harness(lab, monkeypatch):
    monkeypatch.setattr(process, "SEND_TIMEOUT_SECONDS", 0.2)

    with (
        running(lab, "import time; time.sleep(30)") as found,
        pytest.raises(ProtocolError, match="does not read"),
    ):
        for _ in range(100_000):
            found.send({"say": "claim"})


# -- the log ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50_000), max_size=12))
def test_a_log_keeps_its_beginning_and_its_end(sizes):
    log, whole = CappedLog(), b""
    for number, size in enumerate(sizes):
        part = bytes([65 + number]) * size
        log.append(part)
        whole += part
    kept = log.join_kept()

    assert log.total_bytes == len(whole)
    assert (
        len(kept) <= capped_log.LOG_HEAD_BYTES + capped_log.LOG_TAIL_BYTES + 50_000 + 60
    )
    assert kept[: capped_log.LOG_HEAD_BYTES] == whole[: capped_log.LOG_HEAD_BYTES]
    assert kept[-capped_log.LOG_TAIL_BYTES :] == whole[-capped_log.LOG_TAIL_BYTES :]
    if b"not kept" not in kept:
        assert kept == whole
