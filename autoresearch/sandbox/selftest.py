"""Find the strongest sandbox level of this machine, by trying to escape from each.

At the start of every session a self-test runs inside the sandbox and attempts what a
hostile train.py would (`escape_attempts`). A level is reached when everything it
promises to deny was denied: the result counts, not the configuration.
`explain_missed_level` says in one sentence why a level was missed, and what to type.
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

SELFTEST_CODE = (
    "import sys; from autoresearch.sandbox.escape_attempts import main;"
    " main(int(sys.argv[1]), sys.argv[2])"
)
COUNT_GPUS_CODE = (
    "import sys; from autoresearch.sandbox.escape_attempts import count_gpus;"
    " count_gpus(int(sys.argv[1]), sys.argv[2])"
)
SELFTEST_SECONDS = 20.0
SCRATCH_GB = 0.25
PROCESS_FAILURES = (ProcessExited, TimeoutError, LimitExceeded, ProtocolError)
# The attempts that may succeed at each level; it denies all others.
ACCEPTED_ESCAPES: dict[str, set[str]] = {
    "full": set(),
    # It cannot limit the size of a folder, hide that processes and devices exist, or
    # hide names in a folder that may be listed. Where the interpreter lies in root's
    # home, the process stays root.
    "landlock": {
        *("scratch without a limit", "other processes", "devices"),
        *("the harness's user", "names of tests"),
    },
    # Signals and abstract sockets are denied by another user id and the filter.
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
    *("/", "/usr/lib", "/usr/local", "/etc"),
    *("/dev", "/tmp", "/var/tmp", "/run"),
)
APPARMOR_USERNS_SETTING = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
APPARMOR_PROFILE_COMMAND = (
    "printf 'abi <abi/4.0>,\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) "
    "{ userns, }\\n' | sudo tee /etc/apparmor.d/bwrap && "
    "sudo apparmor_parser -r /etc/apparmor.d/bwrap"
)


@dataclass(frozen=True, slots=True)
class HostPaths:
    """The host's folders that a sandbox hides, and where the self-test may write."""

    lab: Path  # the folder that sandboxed processes are marked with
    scratch: Path
    cache: Path  # prepared data sets

    @property
    def secret_paths(self) -> tuple[Path, ...]:
        """Hidden even where they lie inside a visible folder."""
        return (self.lab, Path.home(), self.cache)


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """The result of one self-test of one level."""

    backend: SandboxBackend
    escapes: tuple[str, ...]  # successful attempts, named as in `list_attempts`
    failure: str = ""  # why the self-test could not run; "" where it ran

    @property
    def is_reached(self) -> bool:
        """Whether the level denies everything it promises to deny."""
        allowed = ACCEPTED_ESCAPES.get(self.backend.level)
        return allowed is None or not (self.failure or set(self.escapes) - allowed)

    @property
    def shortfall(self) -> str:
        """Why the level was missed, in a few words."""
        allowed = ACCEPTED_ESCAPES.get(self.backend.level) or set()
        return (
            self.failure or f"it leaves open: {', '.join(set(self.escapes) - allowed)}"
        )


def require_backend(host: HostPaths, level: str, device: Device) -> SandboxBackend:
    """The backend of one level, tested; raises LabError with the exact remedy."""
    results = run_selftests(host, device, only=level)
    if results and results[-1].is_reached:
        return results[-1].backend
    best = run_selftests(host, device)[-1].backend.level
    raise LabError(
        f'program.md asks for cage = "{level}", which this machine does not support: '
        f"{explain_missed_level(level, results)}; or accept a weaker sandbox and write "
        f'cage = "{best}" in program.md (docs/security.md says what is lost)'
    )


def find_best_backend(host: HostPaths, device: Device) -> tuple[SandboxBackend, str]:
    """The strongest backend of this machine, and why not `full` ("" if it is)."""
    results = run_selftests(host, device)
    best = results[-1].backend
    if best.level == "full":
        return best, ""
    return best, explain_missed_level("full", results)


def run_selftests(
    host: HostPaths, device: Device, only: str | None = None
) -> list[SelfTestResult]:
    """Test the levels, strongest first, until one is reached; return all results.

    `only` names a single level to test; None: all.
    """
    results: list[SelfTestResult] = []
    for candidate in backends.iter_available_backends(host.secret_paths, host.lab):
        if only not in (None, candidate.level):
            continue
        results.append(run_selftest(candidate, host, device))
        if results[-1].is_reached:
            break
    return results


def run_selftest(
    candidate: SandboxBackend, host: HostPaths, device: Device
) -> SelfTestResult:
    """Try to escape from one sandbox."""
    if isinstance(candidate, Unsandboxed):
        return SelfTestResult(candidate, ())  # it promises nothing
    folder = host.scratch / "runs" / f"probe-{os.getpid()}"
    process.remove_folder(folder)
    (folder / "scratch").mkdir(parents=True)
    sandboxed = None
    try:
        with open_host_targets(host) as targets:
            sandboxed = SandboxedProcess(
                folder / "scratch",
                lab=host.lab,
                device=device,
                limits=ResourceLimits(4.0, disk_gb=SCRATCH_GB),
                stop=StopFlag(),
                backend=candidate,
                code=SELFTEST_CODE,
            )
            with sandboxed:
                sandboxed.send({**targets, **build_expectations(host, folder, device)})
                deadline = time.monotonic() + SELFTEST_SECONDS
                message = sandboxed.receive_message(deadline)
        return SelfTestResult(candidate, tuple(map(str, message["open"])))
    except (*PROCESS_FAILURES, KeyError, OSError) as error:
        log = sandboxed.log.join_kept().decode(errors="replace") if sandboxed else ""
        last = log.strip().splitlines()[-1] if log.strip() else str(error)
        # A TimeoutError has no text, and an empty failure would mean that it passed.
        why = last.strip() or f"the self-test did not finish ({type(error).__name__})"
        return SelfTestResult(candidate, (), failure=why[:300])
    finally:
        process.remove_folder(folder)


def sees_only_its_gpu(
    candidate: SandboxBackend, host: HostPaths, device: Device
) -> bool:
    """Whether CUDA finds exactly the device's GPU from inside the sandbox.

    A sandbox that hides the other GPUs may also change how CUDA numbers them.
    """
    folder = host.scratch / "runs" / f"gpu-{os.getpid()}-{device.index}"
    process.remove_folder(folder)
    folder.mkdir(parents=True)
    limits, stop = ResourceLimits(4.0), StopFlag()
    try:
        with SandboxedProcess(
            folder, lab=host.lab, device=device, limits=limits, stop=stop,
            backend=candidate, code=COUNT_GPUS_CODE,
        ) as sandboxed:  # fmt: skip
            message = sandboxed.receive_message(time.monotonic() + SELFTEST_SECONDS)
        return message.get("gpus") == 1
    except PROCESS_FAILURES:
        return False
    finally:
        process.remove_folder(folder)


@contextmanager
def open_host_targets(host: HostPaths) -> Iterator[dict[str, Any]]:
    """Open what the self-test tries to reach: a file, listeners, this process."""
    canary = host.scratch / "canary"
    canary.write_text("whatever can read this is not sandboxed\n")
    name = f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as named,
    ):
        os.chmod(folder, 0o755)
        path = f"{folder}/socket"
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


def build_expectations(host: HostPaths, folder: Path, device: Device) -> dict[str, Any]:
    """What the self-test may see or do without counting it as an escape."""
    view = backends.build_view(host.secret_paths)
    home, cache = Path.home(), host.cache
    spec = process.SandboxSpec(folder, folder, device, ResourceLimits(1.0))
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
        "variables": [*process.build_environment(spec), "PWD", "LC_CTYPE"],
        "devices": [
            *STANDARD_DEVICES,
            *(node.parts[2] for node in backends.list_gpu_device_files(device)),
        ],
    }


def list_visible_names(folder: Path, roots: tuple[Path, ...]) -> list[str]:
    """Names in a folder that are visible because a visible path leads through them."""
    return sorted(
        {root.relative_to(folder).parts[0] for root in roots if folder in root.parents}
    )


# -- why not, and what to type ---------------------------------------------------------


def explain_missed_level(level: str, results: list[SelfTestResult]) -> str:
    """Say why a level was missed on this machine, and give the exact remedy."""
    missed = next((r.shortfall for r in results if r.backend.level == level), "")
    if level != "full":
        return missed or f"{level} needs {LEVEL_REQUIREMENTS[level]}"
    if sys.platform != "linux":
        return "full needs Linux (on Windows: WSL2). Next: run it there"
    if not shutil.which("bwrap"):
        return (
            "bubblewrap is not installed. Next: apt install bubblewrap "
            "(Fedora: dnf install bubblewrap)"
        )
    return f"{missed or 'it was not reached'}. Next: {suggest_remedy(missed)}"


LEVEL_REQUIREMENTS = {
    "landlock": f"Linux 6.12 or newer (Landlock {landlock.REQUIRED_ABI})",
    "container": "root in a container, a Python and a lab that other users can reach "
    "(chmod o+x), and Linux 5.13 or newer (Landlock)",
    "seatbelt": "macOS",
    "none": "nothing",
}


def suggest_remedy(missed: str) -> str:
    """Say what to type so that bubblewrap works, from its error and kernel settings."""
    if "Unknown option" in missed:
        return f"install bubblewrap 0.8 or newer (this is {read_bubblewrap_version()})"
    if "SECCOMP" in missed:  # quotes bubblewrap
        return (
            "boot a kernel with CONFIG_SECCOMP_FILTER (every distribution has it; a "
            'custom or sandboxed kernel may not), or cage = "none" in program.md'
        )
    if os.geteuid() != 0 and read_kernel_setting(APPARMOR_USERNS_SETTING) == "1":
        return APPARMOR_PROFILE_COMMAND  # Ubuntu 24.04 and others restrict namespaces
    if (
        os.geteuid() != 0
        and read_kernel_setting("/proc/sys/kernel/unprivileged_userns_clone") == "0"
    ):
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if (
        read_kernel_setting("/proc/sys/user/max_user_namespaces") == "0"
        and os.geteuid() != 0
    ):
        return "sudo sysctl -w user.max_user_namespaces=15000"
    if backends.in_container():
        return (
            "start the container with --cap-add SYS_ADMIN --security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
            "systempaths=unconfined"
        )
    return "bwrap --ro-bind / / --unshare-all true   (it shows the kernel's error)"


def read_kernel_setting(path: str) -> str:
    """The value of a kernel setting; "" where it does not exist."""
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def read_bubblewrap_version() -> str:
    """The output of `bwrap --version`; "unknown" where it cannot run."""
    with suppress(OSError):
        done = subprocess.run(("bwrap", "--version"), capture_output=True, text=True)
        return done.stdout.strip()
    return "unknown"


def collect_sandbox_facts(backend: SandboxBackend) -> Mapping[str, object]:
    """Describe the sandbox, for the session's record in the ledger."""
    cgroup = cgroups.find_cgroup_parent()
    return {
        "level": backend.level,
        "kernel": os.uname().release,
        "landlock": landlock.landlock_abi(),
        "bubblewrap": read_bubblewrap_version() if backend.level == "full" else "",
        "groups": f"version {cgroup.version}" if cgroup else "none",
    }
