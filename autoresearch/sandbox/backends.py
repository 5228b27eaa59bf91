"""The sandbox backends, one class per level.

full       bubblewrap: own mount, pid, network, ipc and uts namespaces, no capabilities,
           a seccomp filter; Landlock inside as a second layer; never root
landlock   where namespaces are refused: Landlock, a seccomp filter without any sockets
container  the same on older kernels, for a root harness in a container: what Landlock
           cannot deny yet (signals) is denied by another user id and the filter
seatbelt   macOS: a profile for sandbox-exec (never run by us; the self-test decides)
none       time and resource limits, and a minimal environment

With bubblewrap a process sees the system and the interpreter, read-only, and its own
files in /scratch, whose size is limited; nothing else. No home, no lab, no ledger, no
sealed data, and no directory called `test` or `tests`, because held-out documents of
the default text come from there.

What counts is not this text but what `selftest` finds when it tries to escape.
"""

import functools
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import autoresearch
from autoresearch import sealed_memory
from autoresearch.experiment import Device
from autoresearch.sandbox import cgroups, landlock, seccomp
from autoresearch.sandbox.privileges import SANDBOX_USER_ID
from autoresearch.sandbox.process import (
    COMPILE_CACHE_FOLDER,
    LaunchSpec,
    SandboxBackend,
    SandboxSpec,
    Unsandboxed,
    build_environment,
)
from autoresearch.sandbox.restrictions import SandboxRestrictions

SCRATCH = "/scratch"
SHM_BYTES = 2 << 30  # of /dev/shm
HIDDEN_FOLDERS = {"test", "tests"}
# Not /usr/share: its documents and dictionaries are text that a model could learn from.
SYSTEM_FOLDERS = tuple(
    "/usr/" + name for name in ["bin", "sbin", "lib", "lib32", "lib64"]
)
SYSTEM_FOLDERS += ("/usr/libexec", "/usr/include", "/usr/local")
# Links into /usr; folders on systems without the merge.
USR_MERGE_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
LOADER_FILES = tuple(
    "/etc/" + name
    for name in ["ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"]
)
CPU_TOPOLOGY_FOLDERS = ("/sys/devices/system/cpu", "/sys/devices/system/node")
PLAIN_DEVICES = tuple("/dev/" + name for name in ["null", "zero", "random", "urandom"])
SHARED_GPU_DEVICES = tuple(
    "/dev/" + name
    for name in [
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
        "nvidia-caps",
        "dxg",
        "kfd",
    ]
)


@dataclass(frozen=True, slots=True)
class FilesystemView:
    """Which paths of this machine may be read, and which paths in them are hidden."""

    roots: tuple[Path, ...]
    hidden: tuple[Path, ...]
    secret: tuple[Path, ...]  # paths where not even names may be seen


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Level `full`: bubblewrap, with seccomp-BPF and Landlock inside.

    Under a root harness the process changes to another user once inside, because its
    interpreter may lie where only root can go. Under any other user it gets a user
    namespace, and is still that user outside it.
    """

    program: str
    view: FilesystemView
    is_root: bool  # whether the harness runs as root
    cgroup_parent: cgroups.CgroupParent | None
    level: str = "full"

    def build_launch_spec(self, spec: SandboxSpec) -> LaunchSpec:
        make_world_readable(spec.folder)
        filter_ = sealed_memory.seal_bytes(seccomp.build_filter(), "filter")
        has_gpu = spec.device.device_type == "cuda"
        restrictions = SandboxRestrictions(
            read=tuple(map(str, (*self.view.roots, *LOADER_FILES, "/proc", "/sys"))),
            # /proc shows only its own processes here; CUDA writes thread names into it.
            write=(SCRATCH, "/dev/shm", *(["/proc"] if has_gpu else [])),
            devices=(*PLAIN_DEVICES, *map(str, list_gpu_device_files(spec.device))),
            identity=SANDBOX_USER_ID if self.is_root else None,
            paths=landlock.landlock_abi() > 0,
        )
        command_prefix = (
            *(self.program, *self.build_namespace_arguments()),
            *("--die-with-parent", "--new-session", "--seccomp", str(filter_)),
            *(*self.build_mount_arguments(spec), "--chdir", SCRATCH, "--"),
        )
        group = (
            self.cgroup_parent.create_group(spec.limits.memory_gb)
            if self.cgroup_parent
            else None
        )
        environment = build_environment(spec, SCRATCH)
        return LaunchSpec(
            command_prefix, environment, restrictions.to_json(), (filter_,), group
        )

    def build_namespace_arguments(self) -> Iterator[str]:
        """Unshare every namespace; keep only the capabilities that setuid needs."""
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
        # bubblewrap started by root keeps every capability by default.
        yield from ("--unshare-cgroup-try", "--hostname", "cage", "--cap-drop", "ALL")
        if not self.is_root:
            yield from ("--unshare-user", "--disable-userns")
        else:
            for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                yield from ("--cap-add", name)

    def build_mount_arguments(self, spec: SandboxSpec) -> Iterator[str]:
        """The mounts. bubblewrap makes them in order, so the outer path comes first."""
        for link in map(Path, USR_MERGE_LINKS):
            if link.is_symlink():
                yield from ("--symlink", os.readlink(link), str(link))
        made: set[Path] = set()
        # A hidden folder may in turn contain something visible.
        places = sorted(
            (*self.view.roots, *self.view.hidden), key=lambda p: len(p.parts)
        )
        for path in places:
            if path in self.view.hidden:
                yield from ("--size", "4096", "--tmpfs", str(path))
            else:
                yield from build_parent_arguments(path, made)
                yield from ("--ro-bind", str(path), str(path))
        for name in LOADER_FILES:
            yield from build_parent_arguments(Path(name), made)
            yield from ("--ro-bind-try", name, name)
        yield from ("--proc", "/proc", "--dev", "/dev")
        if spec.device.device_type == "cuda":
            yield from ("--ro-bind", "/sys", "/sys")  # cuInit looks for its GPU there
        else:
            for name in CPU_TOPOLOGY_FOLDERS:
                yield from build_parent_arguments(Path(name), made)
                yield from ("--ro-bind-try", name, name)
        for node in list_gpu_device_files(spec.device):
            yield from ("--dev-bind-try", str(node), str(node))
        yield from ("--perms", "1777", "--size", str(SHM_BYTES))
        yield from ("--tmpfs", "/dev/shm")
        size = int(spec.limits.disk_gb * 1e9)
        yield from ("--perms", "1777", "--size", str(size), "--tmpfs", SCRATCH)
        for path in sorted(spec.folder.iterdir()):
            bind = "--bind" if path.name == COMPILE_CACHE_FOLDER else "--ro-bind"
            yield from (bind, str(path), f"{SCRATCH}/{path.name}")
        # Left writable, these two would be memory without a limit.
        yield from ("--remount-ro", "/dev", "--remount-ro", "/")


@dataclass(frozen=True, slots=True)
class Landlock:
    """Levels `landlock` and `container`: restrictions the process applies to itself.

    Not covered, compared with `full`: the process sees that other processes exist, how
    full the disk is, and the names of unreadable files in folders called `test`; its
    own files lie on the real disk while it runs.
    """

    readable_paths: tuple[str, ...]  # may be read, with everything below
    listable_folders: tuple[str, ...]  # only names may be seen, with everything below
    user_id: int | None  # None: the harness is not root; 0: root without capabilities
    cgroup_parent: cgroups.CgroupParent | None
    level: str = "landlock"

    def build_launch_spec(self, spec: SandboxSpec) -> LaunchSpec:
        make_world_readable(spec.folder)
        if self.user_id:
            shutil.chown(spec.folder, self.user_id, self.user_id)
        loader = (*LOADER_FILES, *CPU_TOPOLOGY_FOLDERS)
        proc: tuple[str, ...] = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo")
        proc += ("/proc/stat",)
        if spec.device.device_type == "cuda":
            # The compilers' child processes need their own /proc/self, whose path is
            # not known yet. Environments and memory of other processes stay protected
            # (Landlock, ptrace).
            proc = ("/proc", "/sys")
        restrictions = SandboxRestrictions(
            read=(*self.readable_paths, *loader, *proc),
            names=self.listable_folders,
            write=(str(spec.folder), "/proc/self"),
            devices=(*PLAIN_DEVICES, *map(str, list_gpu_device_files(spec.device))),
            filter=True,
            identity=self.user_id,
        )
        file = sealed_memory.seal_bytes(restrictions.to_json().encode(), "restrictions")
        group = (
            self.cgroup_parent.create_group(spec.limits.memory_gb)
            if self.cgroup_parent
            else None
        )
        return LaunchSpec((), build_environment(spec), f"@{file}", (file,), group)


@dataclass(frozen=True, slots=True)
class Seatbelt:
    """Level `seatbelt`: macOS. Written from the documentation, never run by us."""

    view: FilesystemView
    level: str = "seatbelt"

    def build_launch_spec(self, spec: SandboxSpec) -> LaunchSpec:
        profile = build_seatbelt_profile(self.view, spec.folder)
        command_prefix = ("/usr/bin/sandbox-exec", "-p", profile)
        return LaunchSpec(command_prefix, build_environment(spec), "")


def build_seatbelt_profile(view: FilesystemView, folder: Path) -> str:
    """Build a Seatbelt profile: deny by default, allow what a run needs.

    The last matching rule wins.
    """

    def quote(path: Path | str) -> str:
        return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

    reads = [*map(quote, view.roots), *map(quote, ("/usr/lib", "/System", "/dev"))]
    hidden = " ".join(f"(subpath {quote(path)})" for path in view.hidden)
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow process-fork process-exec signal (target same-sandbox))",
        "(allow sysctl-read)",
        '(allow mach-lookup (global-name "com.apple.MTLCompilerService"))',
        '(allow iokit-open (iokit-user-client-class "AGXDeviceUserClient"))',
        '(allow file-read-metadata (literal "/"))',
        *(f"(allow file-read* (subpath {path}))" for path in reads),
        f"(allow file-read* file-write* (subpath {quote(folder)}))",
        '(allow file-write-data (literal "/dev/null"))',
    ]
    return "\n".join([*lines, *([f"(deny file-read* {hidden})"] if hidden else [])])


# -- what a sandboxed process may see --------------------------------------------------


@functools.cache  # it walks through every installed package
def build_view(secret: tuple[Path, ...]) -> FilesystemView:
    """Collect the system and this interpreter, without tests and the secret paths."""
    package = Path(autoresearch.__file__).resolve().parent
    roots = [Path(path) for path in SYSTEM_FOLDERS if Path(path).is_dir()]
    roots += [Path(path) for path in USR_MERGE_LINKS if not Path(path).is_symlink()]
    secrets = {path.resolve() for path in secret if path.exists()}
    for path in (
        *iter_interpreter_paths(),
        *iter_import_paths(package),
        *iter_library_folders(),
    ):
        covered = any(is_inside(path, root) for root in roots)
        if path.exists() and (not covered or any(is_inside(path, s) for s in secrets)):
            roots.append(path)
    hidden = [s for s in secrets if any(is_inside(s, root) for root in roots)]
    hidden += find_test_folders(
        [*map(Path, read_isolated_sys_path()), Path(sys.base_prefix, "lib")]
    )
    base = Path(sysconfig.get_path("stdlib"))
    site = (base / "site-packages", base / "dist-packages")
    hidden += [
        path
        for path in site
        if path.is_dir() and str(path) not in read_isolated_sys_path()
    ]
    masked = {path for path in hidden if path.is_dir()}
    masked -= {p for p in masked if not secrets & {p} and masked & {*p.parents}}
    existing = tuple(p for p in roots if p.exists())
    return FilesystemView(existing, tuple(sorted(masked)), tuple(sorted(secrets)))


def iter_interpreter_paths() -> Iterator[Path]:
    """The parts of the Python installation and environment that an interpreter needs.

    Never a whole prefix: a lab or a home may lie beside `bin` and `lib`.
    """
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix)):
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            yield Path(prefix, name)
    # An environment's python may be a chain of links; each one has to be visible.
    link = Path(sys.executable)
    with suppress(PermissionError):  # then the interpreter was not found through it
        while link.is_symlink():
            yield link.parent
            link = (link.parent / os.readlink(link)).absolute()
        yield link.parent


def iter_import_paths(package: Path) -> Iterator[Path]:
    """The folders on sys.path; of a source checkout of ours only the package."""
    yield package
    for entry in map(Path, read_isolated_sys_path()):
        if entry.is_dir() and entry.resolve() != package.parent:
            yield entry


def iter_library_folders() -> Iterator[Path]:
    """The folders named by LD_LIBRARY_PATH and CUDA_HOME."""
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME"):
        for entry in filter(None, os.environ.get(name, "").split(":")):
            if Path(entry).is_dir():
                yield Path(entry)


@functools.cache
def read_isolated_sys_path() -> tuple[str, ...]:
    """sys.path under `python -I`: without the current folder or PYTHONPATH."""
    code = "import sys; print('\\0'.join(sys.path), end='')"
    done = subprocess.run(
        (sys.executable, "-I", "-B", "-c", code), capture_output=True, text=True
    )
    return tuple(entry for entry in done.stdout.split("\0") if entry)


def find_test_folders(roots: Iterable[Path]) -> list[Path]:
    """Find directories called test or tests below the roots, outermost only."""
    found: list[Path] = []
    waiting = [root for root in roots if root.is_dir()]
    seen: set[Path] = set()
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    is_hidden = entry.name in HIDDEN_FOLDERS
                    (found if is_hidden else waiting).append(Path(entry.path))
    return found


def build_allowlists(view: FilesystemView) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turn a view into allowlists: (readable paths, listable folders).

    Landlock cannot exclude a path inside an allowed folder, so the siblings of a hidden
    path are allowed instead. Python lists a folder to find a module in it, so a folder
    that contains a hidden path stays listable; and since Landlock's rights extend to
    everything below, the names inside hidden folders are visible as well. Those inside
    secret folders are not.
    """
    hidden = {os.path.realpath(path) for path in view.hidden}
    above = {str(parent) for path in hidden for parent in Path(path).parents}
    secret = {str(parent) for path in view.secret for parent in (path, *path.parents)}
    read: list[str] = []
    names: list[str] = []
    # A root may be a link to another root; under the link's name nothing is hidden.
    waiting = [
        (root, False) for root in sorted({os.path.realpath(r) for r in view.roots})
    ]
    while waiting:
        path, is_listed = waiting.pop()
        if path not in above:
            read.append(path)
            continue
        if not is_listed and path not in secret:
            names.append(path)
            is_listed = True
        for entry in os.scandir(path):
            if entry.path not in hidden and not entry.is_symlink():
                waiting.append((entry.path, is_listed))
    return tuple(read), tuple(names)


def list_gpu_device_files(device: Device) -> tuple[Path, ...]:
    """The existing device nodes of a GPU; () for a device that is no GPU."""
    if device.device_type != "cuda":
        return ()
    own_node = device.device_file or f"/dev/nvidia{device.index or 0}"
    names = (*SHARED_GPU_DEVICES, own_node)
    return tuple(path for path in map(Path, names) if path.exists())


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is the folder or below it."""
    return path == folder or folder in path.parents


def build_parent_arguments(path: Path, made: set[Path]) -> Iterator[str]:
    """Make the parents of a mount, readable by all: by default only root may enter."""
    for parent in reversed(path.parents[:-1]):
        if parent not in made:
            made.add(parent)
            yield from ("--perms", "0755", "--dir", str(parent))


def make_world_readable(folder: Path) -> None:
    """Make a run's folder readable by other users, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            extra = 0o055 if path.is_dir() else 0o044
            path.chmod(stat.S_IMODE(mode) | extra)


# -- which backends there are ----------------------------------------------------------


def iter_available_backends(
    secret: tuple[Path, ...], lab: Path
) -> Iterator[SandboxBackend]:
    """The backends this machine may support, strongest first; each has to be tested."""
    view = build_view(secret)
    is_root = os.geteuid() == 0
    if sys.platform == "linux":
        cgroup = cgroups.find_cgroup_parent()
        bwrap = shutil.which("bwrap")
        if bwrap:
            yield Bubblewrap(bwrap, view, is_root, cgroup)
        user_id = None
        if is_root:
            user_id = SANDBOX_USER_ID if is_world_reachable(view, lab) else 0
        if landlock.landlock_abi() >= landlock.REQUIRED_ABI:
            yield Landlock(*build_allowlists(view), user_id, cgroup)
        if landlock.landlock_abi() >= 1 and user_id and in_container():
            yield Landlock(*build_allowlists(view), user_id, cgroup, level="container")
    if sys.platform == "darwin" and Path("/usr/bin/sandbox-exec").exists():
        yield Seatbelt(view)
    yield Unsandboxed()


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    markers = (Path("/.dockerenv"), Path("/run/.containerenv"))
    names = ("container", "KUBERNETES_SERVICE_HOST")
    return any(m.exists() for m in markers) or any(n in os.environ for n in names)


def is_world_reachable(view: FilesystemView, lab: Path) -> bool:
    """Whether another user can reach every path of the view, and the lab's runs."""
    return all(
        parent.stat().st_mode & 0o001
        for path in (*view.roots, lab / "runs")
        for parent in path.parents
    )
