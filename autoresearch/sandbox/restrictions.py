"""The restrictions a sandboxed process applies to itself before it runs train.py."""

import json
from typing import NamedTuple

from autoresearch.sandbox.landlock import restrict
from autoresearch.sandbox.privileges import become, no_new_privileges
from autoresearch.sandbox.seccomp import load, program


class Fence(NamedTuple):
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

    def words(self) -> str:
        """As text; thousands of paths do not fit into one argument of a command."""
        return json.dumps(self._asdict())

    @classmethod
    def of(cls, words: str) -> "Fence":
        """What `words` wrote, or `@` and the descriptor that it can be read from."""
        if words.startswith("@"):
            with open(int(words[1:]), "rb") as file:
                words = file.read().decode()
        said = json.loads(words)
        for key in ("read", "names", "write", "devices"):
            said[key] = tuple(said[key])
        return cls(**said)

    def close(self) -> None:
        """Apply it to this process. Raises OSError where the kernel cannot."""
        if self.identity is not None:
            become(self.identity)
        no_new_privileges()
        if self.paths:
            restrict(self.read, self.write, self.devices, self.names)
        if self.filter:
            load(program(sockets=False, lasting=False))
