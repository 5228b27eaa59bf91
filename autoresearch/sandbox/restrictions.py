"""The restrictions a sandboxed process applies to itself before it runs train.py."""

import json
from typing import NamedTuple

from autoresearch.sandbox.landlock import restrict_self
from autoresearch.sandbox.privileges import drop_privileges, set_no_new_privileges
from autoresearch.sandbox.seccomp import build_filter, install_filter


class SandboxRestrictions(NamedTuple):
    """What a guest forbids itself before it begins.

    A tuple, because dataclasses take longer to import than a cage to build.
    """

    read: tuple[str, ...] = ()  # paths, and all below them
    names: tuple[str, ...] = ()  # folders where only names may be seen, at any depth
    write: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # may also be asked with ioctl
    filter: bool = False  # load the seccomp filter (a launcher may have done it)
    identity: int | None = None  # become this user, if root
    paths: bool = True  # use Landlock at all

    def to_json(self) -> str:
        """As text; thousands of paths do not fit into one argument of a command."""
        return json.dumps(self._asdict())

    @classmethod
    def from_argument(cls, words: str) -> "SandboxRestrictions":
        """What `words` wrote, or `@` and the descriptor that it can be read from."""
        if words.startswith("@"):
            with open(int(words[1:]), "rb") as file:
                words = file.read().decode()
        said = json.loads(words)
        for key in ("read", "names", "write", "devices"):
            said[key] = tuple(said[key])
        return cls(**said)

    def apply(self) -> None:
        """Apply it to this process. Raises OSError where the kernel cannot."""
        if self.identity is not None:
            drop_privileges(self.identity)
        set_no_new_privileges()
        if self.paths:
            restrict_self(self.read, self.write, self.devices, self.names)
        if self.filter:
            install_filter(build_filter(sockets=False, lasting=False))
