"""The restrictions that a sandboxed process applies to itself before it runs train.py.

Landlock, the seccomp filter and another user id. They hold for every thread and child
started later and cannot be removed. Standard library only.

Not covered: what an allowed path contains; time; memory. Linux only: elsewhere `apply`
raises OSError.
"""

import json
from typing import NamedTuple

from autoresearch.sandbox.landlock import restrict_self
from autoresearch.sandbox.privileges import drop_privileges, set_no_new_privileges
from autoresearch.sandbox.seccomp import build_filter, install_filter


class SandboxRestrictions(NamedTuple):
    """Paths, devices, user id and filter that a sandboxed process is restricted to.

    A NamedTuple, because importing dataclasses takes longer than starting a sandbox.
    """

    read: tuple[str, ...] = ()  # paths, with everything below
    names: tuple[str, ...] = ()  # folders that may be listed, at any depth
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # read, write and ioctl
    filter: bool = False  # install the seccomp filter (a launcher may have done it)
    identity: int | None = None  # change to this user id, if root
    paths: bool = True  # use Landlock at all

    def to_json(self) -> str:
        """As JSON, which may be too long for a command-line argument."""
        return json.dumps(self._asdict())

    @classmethod
    def from_argument(cls, argument: str) -> "SandboxRestrictions":
        """Parse `to_json`'s text, or `@` and a file descriptor to read it from."""
        if argument.startswith("@"):
            with open(int(argument[1:]), "rb") as file:
                argument = file.read().decode()
        fields = json.loads(argument)
        for key in ("read", "names", "write", "devices"):
            fields[key] = tuple(fields[key])
        return cls(**fields)

    def apply(self) -> None:
        """Apply them to this process, for good. Raises OSError if unsupported."""
        if self.identity is not None:
            drop_privileges(self.identity)
        set_no_new_privileges()
        if self.paths:
            restrict_self(self.read, self.write, self.devices, self.names)
        if self.filter:
            install_filter(build_filter(allow_sockets=False, allow_ipc=False))
