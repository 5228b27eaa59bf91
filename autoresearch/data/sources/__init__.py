"""Sources of a lab's text: Python's own code, files, or the Hugging Face hub.

A source lists its files with size and sha256 (`describe`), so that the text has a
fingerprint, and yields documents under stable names. It decides nothing about splits,
but says which documents may be held out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

ShowProgress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Document:
    """One text, under a name that is the same on every machine."""

    name: str
    text: str
    may_hold_out: bool = True


class Source(Protocol):
    """A text and its origin."""

    def collect_quick_facts(self) -> Mapping[str, object]:
        """Return facts that change whenever the text may have changed; fast."""
        ...

    def fetch(self, show: ShowProgress) -> None:
        """Download the text, unless it is on this machine."""
        ...

    def describe(self) -> Mapping[str, object]:
        """Return the names, sizes, sha256 and versions of the text."""
        ...

    def iter_documents(self) -> Iterator[Document]:
        """Yield every document, in a fixed order."""
        ...
