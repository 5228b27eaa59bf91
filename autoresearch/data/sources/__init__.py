"""Sources: where the text of a lab comes from. Python's own code, files, or the hub.

A source names its files with size and sha256 (`description`), so that the text has a
fingerprint, and yields documents under stable names. It decides nothing about splits,
but knows which documents may be held out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

ShowProgress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Document:
    """One text under a name that is the same on every machine."""

    name: str
    text: str
    may_hold_out: bool = True


class Source(Protocol):
    """A text and where it came from."""

    def collect_quick_facts(self) -> Mapping[str, object]:
        """What changes when the text may have changed; quick to find out."""
        ...

    def fetch(self, show: ShowProgress) -> None:
        """Bring the text to this machine, where it is not yet."""
        ...

    def describe(self) -> Mapping[str, object]:
        """What the text is: names, sizes, sha256, versions."""
        ...

    def iter_documents(self) -> Iterator[Document]:
        """Every document, in a fixed order."""
        ...
