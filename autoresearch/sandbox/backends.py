"""What stands around a guest, level by level.

full       bubblewrap: own mount, pid, network, ipc and uts namespaces, no capability, a
           seccomp filter; Landlock inside as a second layer; a user that is not root's
landlock   where namespaces are refused: Landlock, a seccomp filter without any socket
container  the same by older kernels, for a root harness in a container: what Landlock
           cannot yet deny (signals), another user and the filter do
seatbelt   macOS: a profile for sandbox-exec (never run by us; the self-test decides)
none       a clock, limits and a bare environment

Behind bubblewrap a guest sees: the system and the interpreter, read-only; its own files
in /scratch, whose size is limited; nothing else. No home, no lab, no ledger, no sealed
data, no directory called `test` or `tests`, because held-out documents of the default
text come from there.

What is promised is not what is written here but what `probing` finds when it tries.
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
# Of the system, without /usr/share: documents and dictionaries are text to learn from.
SYSTEM_FOLDERS = tuple(
    "/usr/" + name for name in ["bin", "sbin", "lib", "lib32", "lib64"]
)
SYSTEM_FOLDERS += ("/usr/libexec", "/usr/include", "/usr/local")
USR_MERGE_LINKS = (
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
)  # of old into /usr, or folders
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
    """What of this machine a guest may read, and what inside it is hidden."""

    roots: tuple[Path, ...]
    hidden: tuple[Path, ...]
    secret: tuple[Path, ...]  # of which not even names may be seen


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Level `full`. Two ways in: a root harness's guest becomes another user inside,
    because its interpreter may lie where only root can go; a plain user's guest gets a
    user namespace, and is that user outside it.
    """

    program: str
    view: FilesystemView
    is_root: bool  # whether the harness is
    cgroup_parent: cgroups.CgroupParent | None
    level: str = "full"

    def build_launch_spec(self, room: SandboxSpec) -> LaunchSpec:
        make_world_readable(room.folder)
        filter_ = sealed_memory.seal_bytes(seccomp.build_filter(), "filter")
        gpu = room.slot.device_type == "cuda"
        fenced = SandboxRestrictions(
            read=tuple(map(str, (*self.view.roots, *LOADER_FILES, "/proc", "/sys"))),
            # All of /proc is its own here, and CUDA names the threads of its children.
            write=(SCRATCH, "/dev/shm", *(["/proc"] if gpu else [])),
            devices=(*PLAIN_DEVICES, *map(str, list_gpu_device_files(room.slot))),
            identity=SANDBOX_USER_ID if self.is_root else None,
            paths=landlock.landlock_abi() > 0,
        )
        before = (
            *(
                self.program,
                *self.build_namespace_arguments(),
                "--die-with-parent",
                "--new-session",
            ),
            *(
                "--seccomp",
                str(filter_),
                *self.build_mount_arguments(room),
                "--chdir",
                SCRATCH,
                "--",
            ),
        )
        group = (
            self.cgroup_parent.create_group(room.limits.memory_gb)
            if self.cgroup_parent
            else None
        )
        seen = build_environment(room, SCRATCH)
        return LaunchSpec(before, seen, fenced.to_json(), (filter_,), group)

    def build_namespace_arguments(self) -> Iterator[str]:
        """Everything unshared, every capability gone but those that dropping needs."""
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
        # bubblewrap started by root keeps every capability unless told otherwise.
        yield from ("--unshare-cgroup-try", "--hostname", "cage", "--cap-drop", "ALL")
        if not self.is_root:
            yield from ("--unshare-user", "--disable-userns")
        else:
            for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                yield from ("--cap-add", name)

    def build_mount_arguments(self, room: SandboxSpec) -> Iterator[str]:
        """bubblewrap does these in order: what hides comes after what it hides in."""
        for link in map(Path, USR_MERGE_LINKS):
            if link.is_symlink():
                yield from ("--symlink", os.readlink(link), str(link))
        made: set[Path] = set()
        # What hides may itself lead to something visible: the outer comes first.
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
        if room.slot.device_type == "cuda":
            yield from ("--ro-bind", "/sys", "/sys")  # cuInit looks for its card there
        else:
            for name in CPU_TOPOLOGY_FOLDERS:
                yield from build_parent_arguments(Path(name), made)
                yield from ("--ro-bind-try", name, name)
        for node in list_gpu_device_files(room.slot):
            yield from ("--dev-bind-try", str(node), str(node))
        yield from ("--perms", "1777", "--size", str(SHM_BYTES))
        yield from ("--tmpfs", "/dev/shm")
        size = int(room.limits.disk_gb * 1e9)
        yield from ("--perms", "1777", "--size", str(size), "--tmpfs", SCRATCH)
        for path in sorted(room.folder.iterdir()):
            bind = "--bind" if path.name == COMPILE_CACHE_FOLDER else "--ro-bind"
            yield from (bind, str(path), f"{SCRATCH}/{path.name}")
        # Without these two the root and /dev are memory without a limit.
        yield from ("--remount-ro", "/dev", "--remount-ro", "/")


@dataclass(frozen=True, slots=True)
class Landlock:
    """Levels `landlock` and `container`: the kernel's doors, closed from the inside.

    Not covered, compared with `full`: the guest sees that other processes exist, how
    full the disk is, and the names of files that it may not read in folders called
    `test`; its files lie on the real disk while it runs.
    """

    readable_paths: tuple[str, ...]  # paths that may be read, with all below them
    listable_folders: tuple[
        str, ...
    ]  # folders whose names may be seen, with all below them
    user_id: int | None  # None: the harness is not root; 0: stays root, with no power
    cgroup_parent: cgroups.CgroupParent | None
    level: str = "landlock"

    def build_launch_spec(self, room: SandboxSpec) -> LaunchSpec:
        make_world_readable(room.folder)
        if self.user_id:
            shutil.chown(room.folder, self.user_id, self.user_id)
        loader = (*LOADER_FILES, *CPU_TOPOLOGY_FOLDERS)
        proc: tuple[str, ...] = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo")
        proc += ("/proc/stat",)
        if room.slot.device_type == "cuda":
            # Its compilers' child processes need their own /proc/self, which has no
            # name yet. Environments and memory of others stay shut (Landlock, ptrace).
            proc = ("/proc", "/sys")
        fenced = SandboxRestrictions(
            read=(*self.readable_paths, *loader, *proc),
            names=self.listable_folders,
            write=(str(room.folder), "/proc/self"),
            devices=(*PLAIN_DEVICES, *map(str, list_gpu_device_files(room.slot))),
            filter=True,
            identity=self.user_id,
        )
        words = sealed_memory.seal_bytes(fenced.to_json().encode(), "fence")
        group = (
            self.cgroup_parent.create_group(room.limits.memory_gb)
            if self.cgroup_parent
            else None
        )
        return LaunchSpec((), build_environment(room), f"@{words}", (words,), group)


@dataclass(frozen=True, slots=True)
class Seatbelt:
    """Level `seatbelt`: macOS. Written from its documentation and never run by us."""

    view: FilesystemView
    level: str = "seatbelt"

    def build_launch_spec(self, room: SandboxSpec) -> LaunchSpec:
        text = build_seatbelt_profile(self.view, room.folder)
        before = ("/usr/bin/sandbox-exec", "-p", text)
        return LaunchSpec(before, build_environment(room), "")


def build_seatbelt_profile(view: FilesystemView, folder: Path) -> str:
    """A Seatbelt profile: deny, then allow what a run needs. The last match wins."""

    def quoted(path: Path | str) -> str:
        return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

    reads = [*map(quoted, view.roots), *map(quoted, ("/usr/lib", "/System", "/dev"))]
    hidden = " ".join(f"(subpath {quoted(path)})" for path in view.hidden)
    lines = [
        "(version 1)",
        "(deny default)",
        "(allow process-fork process-exec signal (target same-sandbox))",
        "(allow sysctl-read)",
        '(allow mach-lookup (global-name "com.apple.MTLCompilerService"))',
        '(allow iokit-open (iokit-user-client-class "AGXDeviceUserClient"))',
        '(allow file-read-metadata (literal "/"))',
        *(f"(allow file-read* (subpath {path}))" for path in reads),
        f"(allow file-read* file-write* (subpath {quoted(folder)}))",
        '(allow file-write-data (literal "/dev/null"))',
    ]
    return "\n".join([*lines, *([f"(deny file-read* {hidden})"] if hidden else [])])


# -- what a guest may see --------------------------------------------------------------


@functools.cache  # it walks through every installed package
def build_view(secret: tuple[Path, ...]) -> FilesystemView:
    """The system and this interpreter, without tests and the `secret` places."""
    package = Path(autoresearch.__file__).resolve().parent
    roots = [Path(path) for path in SYSTEM_FOLDERS if Path(path).is_dir()]
    roots += [Path(path) for path in USR_MERGE_LINKS if not Path(path).is_symlink()]
    secrets = {path.resolve() for path in secret if path.exists()}
    for path in (
        *iter_interpreter_paths(),
        *iter_import_paths(package),
        *iter_library_folders(),
    ):
        seen = any(is_inside(path, root) for root in roots)
        if path.exists() and (not seen or any(is_inside(path, s) for s in secrets)):
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
    kept = {path for path in hidden if path.is_dir()}
    kept -= {path for path in kept if not secrets & {path} and kept & {*path.parents}}
    shown = tuple(p for p in roots if p.exists())
    return FilesystemView(shown, tuple(sorted(kept)), tuple(sorted(secrets)))


def iter_interpreter_paths() -> Iterator[Path]:
    """The parts of an installation and of an environment that Python needs.

    Never the whole of one: a lab or a home may lie beside `bin` and `lib`.
    """
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix)):
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            yield Path(prefix, name)
    # An environment's python may be a link to a link; each stop has to be there.
    link = Path(sys.executable)
    with suppress(PermissionError):  # then it was not by this link that we got here
        while link.is_symlink():
            yield link.parent
            link = (link.parent / os.readlink(link)).absolute()
        yield link.parent


def iter_import_paths(package: Path) -> Iterator[Path]:
    """Where modules come from; of a checkout of ours only the package."""
    yield package
    for entry in map(Path, read_isolated_sys_path()):
        if entry.is_dir() and entry.resolve() != package.parent:
            yield entry


def iter_library_folders() -> Iterator[Path]:
    """Folders of shared libraries that the environment names."""
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME"):
        for entry in filter(None, os.environ.get(name, "").split(":")):
            if Path(entry).is_dir():
                yield Path(entry)


@functools.cache
def read_isolated_sys_path() -> tuple[str, ...]:
    """sys.path as a guest has it: without this process's folder or PYTHONPATH."""
    code = "import sys; print('\\0'.join(sys.path), end='')"
    done = subprocess.run(
        (sys.executable, "-I", "-B", "-c", code), capture_output=True, text=True
    )
    return tuple(entry for entry in done.stdout.split("\0") if entry)


def find_test_folders(roots: Iterable[Path]) -> list[Path]:
    """Directories called test or tests below some folders, outermost only."""
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
                    hide = entry.name in HIDDEN_FOLDERS
                    (found if hide else waiting).append(Path(entry.path))
    return found


def build_allowlists(view: FilesystemView) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A view as allowances: (what may be read, where names may be seen).

    Instead of what is hidden, its neighbours may be read. Python finds a module by
    listing the folder it is in, so a folder with something hidden in it may be listed;
    and Landlock's rights hold for all below, so the names in what is hidden show too.
    Of what is secret not even those.
    """
    hidden = {os.path.realpath(path) for path in view.hidden}
    above = {str(parent) for path in hidden for parent in Path(path).parents}
    secret = {str(parent) for path in view.secret for parent in (path, *path.parents)}
    read: list[str] = []
    names: list[str] = []
    # A root may be a link to another; by the link's name nothing in it is hidden.
    waiting = [
        (root, False) for root in sorted({os.path.realpath(r) for r in view.roots})
    ]
    while waiting:
        path, listed = waiting.pop()
        if path not in above:
            read.append(path)
            continue
        if not listed and path not in secret:
            names.append(path)
            listed = True
        for entry in os.scandir(path):
            if entry.path not in hidden and not entry.is_symlink():
                waiting.append((entry.path, listed))
    return tuple(read), tuple(names)


def list_gpu_device_files(slot: Device) -> tuple[Path, ...]:
    """The device nodes of a slot's GPU; none for a slot without one."""
    if slot.device_type != "cuda":
        return ()
    names = (*SHARED_GPU_DEVICES, slot.device_file or f"/dev/nvidia{slot.index or 0}")
    return tuple(path for path in map(Path, names) if path.exists())


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is the folder or below it."""
    return path == folder or folder in path.parents


def build_parent_arguments(path: Path, made: set[Path]) -> Iterator[str]:
    """Make the folders that lead to a mount, open to all: by default only root may."""
    for parent in reversed(path.parents[:-1]):
        if parent not in made:
            made.add(parent)
            yield from ("--perms", "0755", "--dir", str(parent))


def make_world_readable(folder: Path) -> None:
    """Another user has to read what is in a run's folder, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            extra = 0o055 if path.is_dir() else 0o044
            path.chmod(stat.S_IMODE(mode) | extra)


# -- which walls there are -------------------------------------------------------------


def iter_available_backends(
    secret: tuple[Path, ...], lab: Path
) -> Iterator[SandboxBackend]:
    """The walls that could stand here, the best first; each still has to be probed."""
    view = build_view(secret)
    root = os.geteuid() == 0
    if sys.platform == "linux":
        place = cgroups.find_cgroup_parent()
        bwrap = shutil.which("bwrap")
        if bwrap:
            yield Bubblewrap(bwrap, view, root, place)
        identity = (
            None
            if not root
            else SANDBOX_USER_ID
            if is_world_reachable(view, lab)
            else 0
        )
        if landlock.landlock_abi() >= landlock.REQUIRED_ABI:
            yield Landlock(*build_allowlists(view), identity, place)
        if landlock.landlock_abi() >= 1 and identity and in_container():
            yield Landlock(*build_allowlists(view), identity, place, level="container")
    if sys.platform == "darwin" and Path("/usr/bin/sandbox-exec").exists():
        yield Seatbelt(view)
    yield Unsandboxed()


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    names = ("container", "KUBERNETES_SERVICE_HOST")
    return any(mark.exists() for mark in marks) or any(n in os.environ for n in names)


def is_world_reachable(view: FilesystemView, lab: Path) -> bool:
    """Whether another user gets to everything the view shows, and to a lab's runs."""
    return all(
        parent.stat().st_mode & 0o001
        for path in (*view.roots, lab / "runs")
        for parent in path.parents
    )
