"""Sandbox backends: what escapes at each level, and what the user is told."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from autoresearch.devices import discovery
from autoresearch.errors import LabError
from autoresearch.experiment import Device
from autoresearch.lab.folder import Lab
from autoresearch.measure.workbench import host_paths
from autoresearch.run import session
from autoresearch.sandbox import backends, cgroups, landlock, seccomp, selftest
from autoresearch.sandbox.process import (
    ResourceLimits,
    SandboxedProcess,
    StopFlag,
    Unsandboxed,
)
from tests import nights
from tests.nights import AUTORESEARCH, command, line_lab, rate, run

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own means")


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


def level(name, lab):
    """The backend of one level, or a skip that says why there is none."""
    if name not in (
        names := [w.level for w in backends.iter_available_backends((), lab.folder)]
    ):
        pytest.skip(f"level {name} cannot be had here, only {', '.join(names)}")
    return next(
        w for w in backends.iter_available_backends((), lab.folder) if w.level == name
    )


class Unlocked:
    """Claims to be a level and restricts nothing."""

    level = "full"

    def build_launch_spec(self, spec):
        return Unsandboxed().build_launch_spec(spec)


# -- what gets through -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "landlock", "container", "seatbelt"])
def test_a_selftest_finds_nothing_open_that_its_level_denies(lab, name):
    found = selftest.run_selftest(level(name, lab), host_paths(lab), Device())

    if found.failure:
        pytest.skip(f"{name} does not work on this machine: {found.failure}")
    assert set(found.escapes) <= selftest.ACCEPTED_ESCAPES[name]


@linux_only
def test_the_same_selftest_gets_through_without_a_sandbox(lab):
    found = selftest.run_selftest(Unlocked(), host_paths(lab), Device())

    assert not found.is_reached
    for door in ("files of the lab", "TCP", "UDP", "named sockets", "other processes"):
        assert door in found.escapes


@linux_only
def test_a_sandbox_that_reads_the_lab_is_not_reached_whatever_it_calls_itself(lab):
    assert (
        "files of the lab"
        in selftest.run_selftest(Unlocked(), host_paths(lab), Device()).shortfall
    )


def guest(tmp_path, lab, name, code, **limits):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train.py").write_text("")
    shut = "import os, sys; from autoresearch.sandbox.restrictions import SandboxRestrictions\n"
    shut += "if sys.argv[2]: SandboxRestrictions.from_argument(sys.argv[2]).apply()\n"
    return SandboxedProcess(
        folder,
        lab=lab.folder,
        device=Device(),
        limits=ResourceLimits(**{"memory_gb": 1.0, "disk_gb": 0.05, **limits}),
        stop=StopFlag(),
        backend=level(name, lab),
        code=shut + code,
    )


@linux_only
def test_at_level_landlock_what_lies_beside_tests_can_be_imported(tmp_path, lab):
    pytest.importorskip("torch")
    code = (
        "import pydoc, torch, torch.utils.data, numpy.testing\n"
        "print('a sum of', int(torch.ones(3).sum()), flush=True)"
    )

    with guest(tmp_path, lab, "landlock", code, memory_gb=4.0) as imports:
        with pytest.raises(Exception, match="exit code 0"):
            imports.receive(time.monotonic() + 120)

        assert imports.log.join_kept() == b"a sum of 3\n"


@linux_only
def test_of_hidden_tests_level_landlock_shows_names_and_of_secrets_not_even_those(
    tmp_path,
):
    for place in ("lib/package/test", "lib/lab", "lib/clean"):
        (tmp_path / place).mkdir(parents=True)
    root, tests, lab = (tmp_path / n for n in ("lib", "lib/package/test", "lib/lab"))
    view = backends.FilesystemView((root,), (tests, lab), (lab,))

    read, names = backends.build_allowlists(view)

    assert read == (str(root / "clean"),)
    assert names == (str(root / "package"),)


@linux_only
def test_a_full_scratch_is_the_guests_own_trouble(tmp_path, lab):
    if nights.walls().level != "full":
        pytest.skip("needs level full")
    code = "open('big', 'wb').write(b'x' * 60_000_000)"

    with guest(tmp_path, lab, "full", code) as fills:
        with pytest.raises(Exception, match="exit code 1"):
            fills.receive(1e9)

        assert b"No space left" in fills.log.join_kept() or b"too large" in (
            fills.log.join_kept()
        )


@linux_only
def test_memory_that_is_in_no_process_counts(tmp_path, lab):
    if nights.walls().level != "full" or cgroups.find_cgroup_parent() is None:
        pytest.skip("needs level full and control groups")
    code = (
        "for n in range(8):\n"
        "    fd = os.memfd_create('x'); os.write(fd, b'x' * 40_000_000)\n"
        "import time; time.sleep(60)\n"
    )

    with guest(tmp_path, lab, "full", code, memory_gb=0.1) as hoards:
        with pytest.raises(Exception, match=r"exit code -9|memory"):
            hoards.receive(1e9)

        assert hoards.is_oom_killed or hoards.peak_memory_gb > 0.05


@linux_only
def test_the_filter_knows_this_machine_and_refuses_others(monkeypatch):
    assert len(seccomp.build_filter()) % 8 == 0
    names = os.uname()
    other = type(names)((*names[:4], "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: other)

    with pytest.raises(OSError, match="riscv64"):
        seccomp.build_filter()


# -- what a human is told --------------------------------------------------------------


def with_cage(lab: Lab, name: str) -> None:
    text = lab.read_file("program.md")
    lines = [line for line in text.splitlines() if not line.startswith("cage")]
    lines.insert(1, f'cage = "{name}"')
    lab.file_path("program.md").write_text("\n".join(lines) + "\n")


def fake_bwrap(folder, words, code=1):
    """A program of this name that only complains."""
    folder.mkdir()
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def path_without_bwrap(tmp_path):
    """PATH with everything but bubblewrap."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("git", "nvidia-smi", "sh"):
        for folder in os.environ["PATH"].split(":"):
            if os.path.exists(f"{folder}/{name}") and not (place / name).exists():
                (place / name).symlink_to(f"{folder}/{name}")
    return {**os.environ, "PATH": str(place)}


@linux_only
def test_without_bubblewrap_one_sentence_says_what_to_install(lab, tmp_path):
    with_cage(lab, "full")

    done = command(lab, "check", env=path_without_bwrap(tmp_path))

    assert done.returncode == 2
    assert "bubblewrap is not installed. Next: apt install bubblewrap" in done.stderr
    assert "Traceback" not in done.stderr
    assert 'cage = "' in done.stderr  # the word that accepts less


@linux_only
def test_a_bubblewrap_that_is_too_old_is_named(lab, tmp_path):
    with_cage(lab, "full")
    old = fake_bwrap(tmp_path / "old", "bwrap: Unknown option --size")

    done = command(lab, "check", env=old)

    assert done.returncode == 2
    assert "install bubblewrap 0.8 or newer" in done.stderr


@linux_only
def test_refused_namespaces_come_with_the_kernels_words_and_a_remedy(lab, tmp_path):
    with_cage(lab, "full")
    words = "bwrap: setting up uid map: Permission denied"

    done = command(lab, "check", env=fake_bwrap(tmp_path / "no", words))

    assert done.returncode == 2
    assert words in done.stderr
    assert "Next: " in done.stderr


@linux_only
def test_a_kernel_without_seccomp_is_named(lab, tmp_path):
    with_cage(lab, "full")
    words = "bwrap: prctl(PR_SET_SECCOMP): Invalid argument"

    done = command(lab, "check", env=fake_bwrap(tmp_path / "no", words))

    assert done.returncode == 2
    assert words in done.stderr
    assert "Next: boot a kernel with CONFIG_SECCOMP_FILTER" in done.stderr


@linux_only
def test_a_tiny_shared_memory_of_the_host_is_no_matter(lab):
    """Data and weights travel in sealed memory, and a cage brings its own /dev/shm."""
    tiny = "mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "
    words = " ".join((*AUTORESEARCH, "run", "--experiments", "1", "--json"))
    done = subprocess.run(
        ("unshare", "--mount", "sh", "-c", tiny + words),
        cwd=lab.folder,
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs a mount namespace")

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == [None, None], done.stderr


def test_each_system_that_refuses_namespaces_gets_its_own_remedy(monkeypatch):
    settings = {selftest.APPARMOR_USERNS_SETTING: "1"}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(
        selftest, "read_kernel_setting", lambda path: settings.get(path, "")
    )
    assert "apparmor_parser -r /etc/apparmor.d/bwrap" in selftest.suggest_remedy(
        "denied"
    )

    settings = {"/proc/sys/kernel/unprivileged_userns_clone": "0"}
    assert "kernel.unprivileged_userns_clone=1" in selftest.suggest_remedy("denied")

    settings = {"/proc/sys/user/max_user_namespaces": "0"}
    assert "user.max_user_namespaces" in selftest.suggest_remedy("denied")

    settings = {}
    monkeypatch.setattr(backends, "in_container", lambda: True)
    assert "--cap-add SYS_ADMIN" in selftest.suggest_remedy("denied")


def test_less_than_full_needs_the_users_word_and_is_another_series(lab):
    run(lab, rate(0.02))
    with_cage(lab, "none")

    rows = run(lab)

    assert rows[0].title == "champion again"
    assert command(lab, "check", "--json").stdout.count('"cage": "none"') == 1


def test_a_level_that_this_machine_has_not_says_what_it_needs(lab):
    with_cage(lab, "seatbelt" if sys.platform == "linux" else "landlock")

    done = command(lab, "check")

    assert done.returncode == 2
    assert "needs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def open_lab():
    """A lab where another user can get to."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield Lab(place)
    shutil.rmtree(place)


@linux_only
def test_in_a_container_an_old_kernel_and_another_user_are_a_level(
    open_lab, monkeypatch
):
    """Landlock 4 is that of Ubuntu 24.04: it keeps no signals and no sockets inside."""
    old = (
        "from autoresearch.sandbox import landlock; landlock.landlock_abi = lambda: 4; "
    )
    monkeypatch.setattr(selftest, "SELFTEST_CODE", old + selftest.SELFTEST_CODE)
    monkeypatch.setattr(backends, "in_container", lambda: True)
    view = backends.build_view(host_paths(open_lab).secret_paths)
    others = backends.is_world_reachable(view, open_lab.folder)
    if os.geteuid() != 0 or landlock.landlock_abi() < 4 or not others:
        pytest.skip("needs root, Landlock, and an interpreter that others can reach")

    found = selftest.run_selftests(host_paths(open_lab), Device(), only="container")

    assert [finding.shortfall for finding in found if not finding.is_reached] == []
    assert found[0].backend.level == "container"
    monkeypatch.setattr(backends, "in_container", lambda: False)
    assert (
        selftest.run_selftests(host_paths(open_lab), Device(), only="container") == []
    )


@linux_only
def test_a_selftest_that_does_not_finish_reaches_no_level_and_has_its_reason(
    lab, monkeypatch
):
    monkeypatch.setattr(selftest, "SELFTEST_SECONDS", 0.0)

    found = selftest.run_selftest(Unlocked(), host_paths(lab), Device())

    assert not found.is_reached
    assert "did not finish" in found.shortfall


@linux_only
def test_a_memory_limit_below_need_is_a_failure_with_its_reason(tmp_path):
    if nights.walls().level != "full" or cgroups.find_cgroup_parent() is None:
        pytest.skip("needs level full and control groups")
    lab = line_lab(tmp_path / "lab", "budget_tokens = 100\nmax_memory_gb = 0.004")

    done = command(lab, "run", "--experiments", "1")

    assert done.returncode == 2
    assert "memory" in done.stderr


@linux_only
def test_a_plain_user_reaches_the_same_level():
    """As root: become somebody else, if that somebody can reach this interpreter."""
    somebody = ("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups")
    code = "import autoresearch.sandbox.selftest, sys, subprocess as s; s.run((sys.executable, '-V'))"
    able = subprocess.run(
        (*somebody, sys.executable, "-I", "-c", code), cwd="/", capture_output=True
    )
    if os.geteuid() != 0 or able.returncode:
        pytest.skip("needs root, and an interpreter that others can reach")
    place = tempfile.mkdtemp()
    os.chown(place, 1000, 1000)
    script = (
        "import sys; from pathlib import Path\n"
        "from autoresearch.measure.workbench import host_paths\n"
        "from autoresearch.sandbox import selftest\n"
        "from autoresearch.experiment import Device\n"
        "from autoresearch.lab.folder import Lab\n"
        "place = host_paths(Lab(Path(sys.argv[1])))\n"
        "print(selftest.find_best_backend(place, Device())[0].level)\n"
    )

    done = subprocess.run(
        (*somebody, sys.executable, "-I", "-c", script, place),
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": place, "PATH": "/usr/bin:/bin"},
        cwd="/",
    )

    shutil.rmtree(place)
    assert done.stdout.strip() == nights.walls().level, done.stderr


def test_a_step_of_the_systems_clock_changes_no_run(lab, monkeypatch):
    real, calls = time.time, iter(range(10**9))

    # A day forward at every second look, a day back at every other.
    monkeypatch.setattr(
        time, "time", lambda: real() + 86_400 * (next(calls) % 2 * 2 - 1)
    )
    rows = run(lab, rate(0.02))

    assert [row.decision for row in rows] == ["keep", "keep"]
    assert all(row.seconds < 60 for row in rows)


def test_a_card_that_cannot_be_used_in_the_cage_takes_no_part_in_a_night(lab):
    if discovery.nvidia():
        pytest.skip("this machine has the card")
    said = []
    absent = Device("cuda", 0, 1, "GPU-0c2f3020")

    assert session.find_working_devices(
        (Device(), absent), nights.walls(), lab, said.append
    ) == (Device(),)
    assert said == ["GPU 0 is left out: CUDA does not find it in the sandbox"]
    with pytest.raises(LabError, match="CUDA finds no GPU inside the sandbox"):
        session.find_working_devices((absent,), nights.walls(), lab, said.append)
