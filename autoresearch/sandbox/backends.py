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
from autoresearch.experiment import Slot
from autoresearch.sandbox import cgroups, landlock, seccomp
from autoresearch.sandbox.privileges import GUEST_ID
from autoresearch.sandbox.process import (
    COMPILED,
    Entry,
    NoWalls,
    Room,
    Walls,
    environment,
)
from autoresearch.sandbox.restrictions import Fence

SCRATCH = "/scratch"
SHARED_BYTES = 2 << 30  # of /dev/shm
HIDDEN_FOLDERS = {"test", "tests"}
# Of the system, without /usr/share: documents and dictionaries are text to learn from.
SYSTEM = tuple("/usr/" + name for name in ["bin", "sbin", "lib", "lib32", "lib64"])
SYSTEM += ("/usr/libexec", "/usr/include", "/usr/local")
LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")  # of old into /usr, or folders
FOR_LOADER = tuple(
    "/etc/" + name
    for name in ["ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives"]
)
OF_PROCESSOR = ("/sys/devices/system/cpu", "/sys/devices/system/node")
PLAIN_DEVICES = tuple("/dev/" + name for name in ["null", "zero", "random", "urandom"])
ANY_GPU = tuple(
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
class View:
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
    view: View
    root: bool  # whether the harness is
    group: cgroups.Place | None
    level: str = "full"

    def entry(self, room: Room) -> Entry:
        readable(room.folder)
        filter_ = sealed_memory.sealed(seccomp.program(), "filter")
        gpu = room.slot.device == "cuda"
        fenced = Fence(
            read=tuple(map(str, (*self.view.roots, *FOR_LOADER, "/proc", "/sys"))),
            # All of /proc is its own here, and CUDA names the threads of its children.
            write=(SCRATCH, "/dev/shm", *(["/proc"] if gpu else [])),
            devices=(*PLAIN_DEVICES, *map(str, nodes(room.slot))),
            identity=GUEST_ID if self.root else None,
            paths=landlock.landlock_abi() > 0,
        )
        before = (
            *(self.program, *self.namespaces(), "--die-with-parent", "--new-session"),
            *("--seccomp", str(filter_), *self.mounts(room), "--chdir", SCRATCH, "--"),
        )
        group = self.group.new(room.limits.memory_gb) if self.group else None
        seen = environment(room, SCRATCH)
        return Entry(before, seen, fenced.words(), (filter_,), group)

    def namespaces(self) -> Iterator[str]:
        """Everything unshared, every capability gone but those that dropping needs."""
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
        # bubblewrap started by root keeps every capability unless told otherwise.
        yield from ("--unshare-cgroup-try", "--hostname", "cage", "--cap-drop", "ALL")
        if not self.root:
            yield from ("--unshare-user", "--disable-userns")
        else:
            for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                yield from ("--cap-add", name)

    def mounts(self, room: Room) -> Iterator[str]:
        """bubblewrap does these in order: what hides comes after what it hides in."""
        for link in map(Path, LINKS):
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
                yield from folders_above(path, made)
                yield from ("--ro-bind", str(path), str(path))
        for name in FOR_LOADER:
            yield from folders_above(Path(name), made)
            yield from ("--ro-bind-try", name, name)
        yield from ("--proc", "/proc", "--dev", "/dev")
        if room.slot.device == "cuda":
            yield from ("--ro-bind", "/sys", "/sys")  # cuInit looks for its card there
        else:
            for name in OF_PROCESSOR:
                yield from folders_above(Path(name), made)
                yield from ("--ro-bind-try", name, name)
        for node in nodes(room.slot):
            yield from ("--dev-bind-try", str(node), str(node))
        yield from ("--perms", "1777", "--size", str(SHARED_BYTES))
        yield from ("--tmpfs", "/dev/shm")
        size = int(room.limits.disk_gb * 1e9)
        yield from ("--perms", "1777", "--size", str(size), "--tmpfs", SCRATCH)
        for path in sorted(room.folder.iterdir()):
            bind = "--bind" if path.name == COMPILED else "--ro-bind"
            yield from (bind, str(path), f"{SCRATCH}/{path.name}")
        # Without these two the root and /dev are memory without a limit.
        yield from ("--remount-ro", "/dev", "--remount-ro", "/")


@dataclass(frozen=True, slots=True)
class Landlocked:
    """Levels `landlock` and `container`: the kernel's doors, closed from the inside.

    Not covered, compared with `full`: the guest sees that other processes exist, how
    full the disk is, and the names of files that it may not read in folders called
    `test`; its files lie on the real disk while it runs.
    """

    allowed: tuple[str, ...]  # paths that may be read, with all below them
    names: tuple[str, ...]  # folders whose names may be seen, with all below them
    identity: int | None  # None: the harness is not root; 0: stays root, with no power
    group: cgroups.Place | None
    level: str = "landlock"

    def entry(self, room: Room) -> Entry:
        readable(room.folder)
        if self.identity:
            shutil.chown(room.folder, self.identity, self.identity)
        loader = (*FOR_LOADER, *OF_PROCESSOR)
        proc: tuple[str, ...] = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo")
        proc += ("/proc/stat",)
        if room.slot.device == "cuda":
            # Its compilers' child processes need their own /proc/self, which has no
            # name yet. Environments and memory of others stay shut (Landlock, ptrace).
            proc = ("/proc", "/sys")
        fenced = Fence(
            read=(*self.allowed, *loader, *proc),
            names=self.names,
            write=(str(room.folder), "/proc/self"),
            devices=(*PLAIN_DEVICES, *map(str, nodes(room.slot))),
            filter=True,
            identity=self.identity,
        )
        words = sealed_memory.sealed(fenced.words().encode(), "fence")
        group = self.group.new(room.limits.memory_gb) if self.group else None
        return Entry((), environment(room), f"@{words}", (words,), group)


@dataclass(frozen=True, slots=True)
class Seatbelt:
    """Level `seatbelt`: macOS. Written from its documentation and never run by us."""

    view: View
    level: str = "seatbelt"

    def entry(self, room: Room) -> Entry:
        text = profile(self.view, room.folder)
        before = ("/usr/bin/sandbox-exec", "-p", text)
        return Entry(before, environment(room), "")


def profile(view: View, folder: Path) -> str:
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
def view_for(secret: tuple[Path, ...]) -> View:
    """The system and this interpreter, without tests and the `secret` places."""
    package = Path(autoresearch.__file__).resolve().parent
    roots = [Path(path) for path in SYSTEM if Path(path).is_dir()]
    roots += [Path(path) for path in LINKS if not Path(path).is_symlink()]
    secrets = {path.resolve() for path in secret if path.exists()}
    for path in (*interpreter(), *imports(package), *libraries()):
        seen = any(inside(path, root) for root in roots)
        if path.exists() and (not seen or any(inside(path, s) for s in secrets)):
            roots.append(path)
    hidden = [s for s in secrets if any(inside(s, root) for root in roots)]
    hidden += test_folders([*map(Path, clean_path()), Path(sys.base_prefix, "lib")])
    base = Path(sysconfig.get_path("stdlib"))
    site = (base / "site-packages", base / "dist-packages")
    hidden += [path for path in site if path.is_dir() and str(path) not in clean_path()]
    kept = {path for path in hidden if path.is_dir()}
    kept -= {path for path in kept if not secrets & {path} and kept & {*path.parents}}
    shown = tuple(p for p in roots if p.exists())
    return View(shown, tuple(sorted(kept)), tuple(sorted(secrets)))


def interpreter() -> Iterator[Path]:
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


def imports(package: Path) -> Iterator[Path]:
    """Where modules come from; of a checkout of ours only the package."""
    yield package
    for entry in map(Path, clean_path()):
        if entry.is_dir() and entry.resolve() != package.parent:
            yield entry


def libraries() -> Iterator[Path]:
    """Folders of shared libraries that the environment names."""
    for name in ("LD_LIBRARY_PATH", "CUDA_HOME"):
        for entry in filter(None, os.environ.get(name, "").split(":")):
            if Path(entry).is_dir():
                yield Path(entry)


@functools.cache
def clean_path() -> tuple[str, ...]:
    """sys.path as a guest has it: without this process's folder or PYTHONPATH."""
    code = "import sys; print('\\0'.join(sys.path), end='')"
    done = subprocess.run(
        (sys.executable, "-I", "-B", "-c", code), capture_output=True, text=True
    )
    return tuple(entry for entry in done.stdout.split("\0") if entry)


def test_folders(roots: Iterable[Path]) -> list[Path]:
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


def around(view: View) -> tuple[tuple[str, ...], tuple[str, ...]]:
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


def nodes(slot: Slot) -> tuple[Path, ...]:
    """The device nodes of a slot's GPU; none for a slot without one."""
    if slot.device != "cuda":
        return ()
    names = (*ANY_GPU, slot.node or f"/dev/nvidia{slot.index or 0}")
    return tuple(path for path in map(Path, names) if path.exists())


def inside(path: Path, folder: Path) -> bool:
    """Whether a path is the folder or below it."""
    return path == folder or folder in path.parents


def folders_above(path: Path, made: set[Path]) -> Iterator[str]:
    """Make the folders that lead to a mount, open to all: by default only root may."""
    for parent in reversed(path.parents[:-1]):
        if parent not in made:
            made.add(parent)
            yield from ("--perms", "0755", "--dir", str(parent))


def readable(folder: Path) -> None:
    """Another user has to read what is in a run's folder, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            extra = 0o055 if path.is_dir() else 0o044
            path.chmod(stat.S_IMODE(mode) | extra)


# -- which walls there are -------------------------------------------------------------


def available(secret: tuple[Path, ...], lab: Path) -> Iterator[Walls]:
    """The walls that could stand here, the best first; each still has to be probed."""
    view = view_for(secret)
    root = os.geteuid() == 0
    if sys.platform == "linux":
        place = cgroups.find()
        bwrap = shutil.which("bwrap")
        if bwrap:
            yield Bubblewrap(bwrap, view, root, place)
        identity = None if not root else GUEST_ID if reachable(view, lab) else 0
        if landlock.landlock_abi() >= landlock.NEEDED_ABI:
            yield Landlocked(*around(view), identity, place)
        if landlock.landlock_abi() >= 1 and identity and in_container():
            yield Landlocked(*around(view), identity, place, level="container")
    if sys.platform == "darwin" and Path("/usr/bin/sandbox-exec").exists():
        yield Seatbelt(view)
    yield NoWalls()


def in_container() -> bool:
    """Whether this process seems to run in a container."""
    marks = (Path("/.dockerenv"), Path("/run/.containerenv"))
    names = ("container", "KUBERNETES_SERVICE_HOST")
    return any(mark.exists() for mark in marks) or any(n in os.environ for n in names)


def reachable(view: View, lab: Path) -> bool:
    """Whether another user gets to everything the view shows, and to a lab's runs."""
    return all(
        parent.stat().st_mode & 0o001
        for path in (*view.roots, lab / "runs")
        for parent in path.parents
    )
