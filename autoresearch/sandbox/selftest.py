"""Which cage this machine can build: found by trying to get out of it.

At the start of every night a probe runs in the cage just built and attempts what a
hostile train.py would (`probe`). A level is reached when everything it promises to deny
was denied; what is open decides, not what was configured. `explained` says in one
sentence why a level was missed, and what to type.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.errors import LabError
from autoresearch.experiment import Device
from autoresearch.sandbox import backends, cgroups, landlock, process, seccomp
from autoresearch.sandbox.escape_attempts import STANDARD_DEVICES
from autoresearch.sandbox.process import (
    LimitExceeded,
    ProcessExited,
    ResourceLimits,
    SandboxBackend,
    SandboxedProcess,
    StopFlag,
    Unsandboxed,
)
from autoresearch.sealed_memory import ProtocolError

PROBE = (
    "import sys; from autoresearch.sandbox.escape_attempts import main;"
    " main(int(sys.argv[1]), sys.argv[2])"
)
COUNT_GPUS_CODE = (
    "import sys; from autoresearch.sandbox.escape_attempts import gpus;"
    " gpus(int(sys.argv[1]), sys.argv[2])"
)
PROBE_SECONDS = 20.0
SCRATCH_GB = 0.25
# What each level leaves open; all else that `probe` tries it denies.
ACCEPTED_ESCAPES: dict[str, set[str]] = {
    "full": set(),
    # It cannot limit a folder, hide that processes and devices exist, list a folder
    # without what is hidden in it, or (where the interpreter lies in root's home) be
    # another user.
    "landlock": {
        *("scratch without a limit", "other processes", "devices"),
        *("the harness's user", "names of tests"),
    },
    # Signals and abstract sockets are denied by another user and by the filter.
    "container": {
        *("scratch without a limit", "other processes", "devices", "names of tests"),
    },
    "seatbelt": {
        *("scratch without a limit", "other processes", "devices", "capabilities"),
        *("the harness's user", "new privileges", "unfiltered system calls"),
        *("the clock", "descriptors"),
        *(
            f"the system call {name}"
            for name in seccomp.DENIED_SYSCALL_NUMBERS["x86_64"]
        ),
    },
}
WRITE_ATTEMPT_FOLDERS = (
    "/",
    "/usr/lib",
    "/usr/local",
    "/etc",
    "/dev",
    "/tmp",
    "/var/tmp",
    "/run",
)
APPARMOR_USERNS_SETTING = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
APPARMOR_PROFILE_COMMAND = (
    "printf 'abi <abi/4.0>,\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) "
    "{ userns, }\\n' | sudo tee /etc/apparmor.d/bwrap && "
    "sudo apparmor_parser -r /etc/apparmor.d/bwrap"
)


@dataclass(frozen=True, slots=True)
class HostPaths:
    """Places of the host that a sandbox hides, and where the self-test may write."""

    lab: Path  # the folder that sandboxed processes are marked with
    scratch: Path
    cache: Path  # of prepared texts

    @property
    def secret_paths(self) -> tuple[Path, ...]:
        """Hidden even when they lie inside something visible."""
        return (self.lab, Path.home(), self.cache)


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What one probe of one level found."""

    backend: SandboxBackend
    escapes: tuple[str, ...]  # what it got through, by the names in `probe`
    failure: str = ""  # why it could not run at all

    @property
    def is_reached(self) -> bool:
        """Whether the level keeps its promise here."""
        allowed = ACCEPTED_ESCAPES.get(self.backend.level)
        return allowed is None or not (self.failure or set(self.escapes) - allowed)

    @property
    def shortfall(self) -> str:
        """What is wrong, in a few words."""
        allowed = ACCEPTED_ESCAPES.get(self.backend.level) or set()
        return (
            self.failure or f"it leaves open: {', '.join(set(self.escapes) - allowed)}"
        )


def require_backend(host: HostPaths, level: str, slot: Device) -> SandboxBackend:
    """The walls of one level, probed, or LabError with the exact remedy."""
    findings = run_selftests(host, slot, only=level)
    if findings and findings[-1].is_reached:
        return findings[-1].backend
    best = run_selftests(host, slot)[-1].backend.level
    raise LabError(
        f'program.md asks for cage = "{level}", which this machine does not give: '
        f"{explain_missed_level(level, findings)}; or accept less and write "
        f'cage = "{best}" into program.md (docs/security.md says what is lost)'
    )


def find_best_backend(host: HostPaths, slot: Device) -> tuple[SandboxBackend, str]:
    """The best walls this machine gives, and why not `full` ("" if they are)."""
    findings = run_selftests(host, slot)
    found = findings[-1].backend
    return found, "" if found.level == "full" else explain_missed_level(
        "full", findings
    )


def run_selftests(
    host: HostPaths, slot: Device, only: str | None = None
) -> list[SelfTestResult]:
    """Probe level after level, best first, until one holds; all that was found."""
    found: list[SelfTestResult] = []
    for candidate in backends.iter_available_backends(host.secret_paths, host.lab):
        if only not in (None, candidate.level):
            continue
        found.append(run_selftest(candidate, host, slot))
        if found[-1].is_reached:
            break
    return found


def run_selftest(
    candidate: SandboxBackend, host: HostPaths, slot: Device
) -> SelfTestResult:
    """Try to get out of one cage."""
    if isinstance(candidate, Unsandboxed):
        return SelfTestResult(candidate, ())  # it promises nothing
    folder = host.scratch / "runs" / f"probe-{os.getpid()}"
    process.remove_folder(folder)
    (folder / "scratch").mkdir(parents=True)
    guest = None
    try:
        with open_host_targets(host) as targets:
            guest = SandboxedProcess(
                folder / "scratch",
                lab=host.lab,
                slot=slot,
                limits=ResourceLimits(4.0, disk_gb=SCRATCH_GB),
                stop=StopFlag(),
                walls=candidate,
                code=PROBE,
            )
            with guest:
                guest.send({**targets, **build_expectations(host, folder, slot)})
                message = guest.receive_message(time.monotonic() + PROBE_SECONDS)
        return SelfTestResult(candidate, tuple(map(str, message["open"])))
    except (
        ProcessExited,
        TimeoutError,
        LimitExceeded,
        ProtocolError,
        KeyError,
        OSError,
    ) as error:
        said = guest.log.join_kept().decode(errors="replace") if guest else ""
        last = said.strip().splitlines()[-1] if said.strip() else str(error)
        # A time-out has no words, and nothing said is nothing found to be shut.
        why = last.strip() or f"the probe came to no end ({type(error).__name__})"
        return SelfTestResult(candidate, (), failure=why[:300])
    finally:
        process.remove_folder(folder)


def sees_only_its_gpu(candidate: SandboxBackend, host: HostPaths, slot: Device) -> bool:
    """Whether CUDA finds exactly the slot's GPU from inside this cage.

    A cage that hides the other cards also hides how they were counted.
    """
    folder = host.scratch / "runs" / f"gpu-{os.getpid()}-{slot.index}"
    process.remove_folder(folder)
    folder.mkdir(parents=True)
    limits, stop = ResourceLimits(4.0), StopFlag()
    try:
        with SandboxedProcess(
            folder, lab=host.lab, slot=slot, limits=limits, stop=stop,
            walls=candidate, code=COUNT_GPUS_CODE,
        ) as guest:  # fmt: skip
            message = guest.receive_message(time.monotonic() + PROBE_SECONDS)
        return message.get("gpus") == 1
    except (ProcessExited, TimeoutError, LimitExceeded, ProtocolError):
        return False
    finally:
        process.remove_folder(folder)


@contextmanager
def open_host_targets(host: HostPaths) -> Iterator[dict[str, Any]]:
    """Things of the harness for the probe to reach for: files, listeners, itself."""
    canary = host.scratch / "canary"
    canary.write_text("a probe that reads this is not caged\n")
    name = f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
    with (
        tempfile.TemporaryDirectory() as place,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as named,
    ):
        os.chmod(place, 0o755)
        path = f"{place}/socket"
        for end in (tcp, udp):
            end.bind(("127.0.0.1", 0))
        named.bind(path)
        os.chmod(path, 0o777)
        if sys.platform == "linux":
            abstract.bind("\0" + name)
            abstract.listen()
        tcp.listen()
        named.listen()
        yield {
            "canary": str(canary),
            "lab": str(host.lab),
            "pid": os.getpid(),
            "uid": os.getuid() if os.getuid() == 0 else -1,
            "tcp": tcp.getsockname(),
            "udp": udp.getsockname(),
            "name": name,
            "path": path,
        }
    canary.unlink(missing_ok=True)


def build_expectations(host: HostPaths, folder: Path, slot: Device) -> dict[str, Any]:
    """What the probe may see without calling it open."""
    view = backends.build_view(host.secret_paths)
    home, cache = Path.home(), host.cache
    room = process.SandboxSpec(folder, folder, slot, ResourceLimits(1.0))
    return {
        "home": str(home),
        "home_names": list_visible_names(home, view.roots),
        "cache": str(cache),
        "cache_names": list_visible_names(cache, view.roots),
        "hidden": [str(path) for path in view.hidden[:200]],
        "places": [
            *WRITE_ATTEMPT_FOLDERS,
            *map(str, view.roots[-6:]),
            str(folder.parent),
        ],
        "scratch_bytes": int(SCRATCH_GB * 1e9),
        "variables": [*process.build_environment(room), "PWD", "LC_CTYPE"],
        "devices": [
            *STANDARD_DEVICES,
            *(node.parts[2] for node in backends.list_gpu_device_files(slot)),
        ],
    }


def list_visible_names(folder: Path, roots: tuple[Path, ...]) -> list[str]:
    """Names in a folder that lead to something visible."""
    return sorted(
        {root.relative_to(folder).parts[0] for root in roots if folder in root.parents}
    )


# -- why not, and what to type ---------------------------------------------------------


def explain_missed_level(level: str, findings: list[SelfTestResult]) -> str:
    """Why a level was missed here, and the exact remedy."""
    if level != "full":
        missed = next((f.shortfall for f in findings if f.backend.level == level), "")
        return missed or f"{level} needs {LEVEL_REQUIREMENTS[level]}"
    if sys.platform != "linux":
        return "full needs Linux (on Windows: WSL2). Next: run it there"
    if not shutil.which("bwrap"):
        return (
            "bubblewrap is not installed. Next: apt install bubblewrap "
            "(Fedora: dnf install bubblewrap)"
        )
    missed = next((f.shortfall for f in findings if f.backend.level == level), "")
    return f"{missed or 'it was not reached'}. Next: {suggest_remedy(missed)}"


LEVEL_REQUIREMENTS = {
    "landlock": f"Linux 6.12 or newer (Landlock {landlock.REQUIRED_ABI})",
    "container": "a container, in it a root harness whose Python and lab others can "
    "reach (chmod o+x), and Linux 5.13 or newer (Landlock)",
    "seatbelt": "macOS",
    "none": "nothing",
}


def suggest_remedy(missed: str) -> str:
    """What to type so that bubblewrap works, by what the kernel says it forbids."""
    if "Unknown option" in missed:
        return f"install bubblewrap 0.8 or newer (this is {read_bubblewrap_version()})"
    if "SECCOMP" in missed:  # bubblewrap's own words for it
        return (
            "boot a kernel with CONFIG_SECCOMP_FILTER (every distribution's has it; a "
            'hand-made or sandboxed one may not), or cage = "none" in program.md'
        )
    if os.geteuid() != 0 and setting(APPARMOR_USERNS_SETTING) == "1":
        return APPARMOR_PROFILE_COMMAND  # Ubuntu 24.04 and whoever else ships this AppArmor rule
    if (
        os.geteuid() != 0
        and setting("/proc/sys/kernel/unprivileged_userns_clone") == "0"
    ):
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if setting("/proc/sys/user/max_user_namespaces") == "0" and os.geteuid() != 0:
        return "sudo sysctl -w user.max_user_namespaces=15000"
    if backends.in_container():
        return (
            "start the container with --cap-add SYS_ADMIN --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
            "systempaths=unconfined"
        )
    return "bwrap --ro-bind / / --unshare-all true   (it shows the kernel's own words)"


def setting(path: str) -> str:
    """A kernel setting; "" where there is none."""
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def read_bubblewrap_version() -> str:
    """What bwrap calls itself."""
    with suppress(OSError):
        done = subprocess.run(("bwrap", "--version"), capture_output=True, text=True)
        return done.stdout.strip()
    return "unknown"


def collect_sandbox_facts(found: SandboxBackend) -> Mapping[str, object]:
    """How a night is caged, for the record of its session."""
    place = cgroups.find_cgroup_parent()
    return {
        "level": found.level,
        "kernel": os.uname().release,
        "landlock": landlock.landlock_abi(),
        "bubblewrap": read_bubblewrap_version() if found.level == "full" else "",
        "groups": f"version {place.version}" if place else "none",
    }
