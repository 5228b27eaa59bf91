"""`script:FILE`: a fixed list of proposals, for tests, demos and replays.

FILE is JSON: a list of objects, each with a `title` and either the whole `source` or
`set`, a table of constants to change in the train.py to start from; `reason` is
optional.

    [{"title": "more steps", "set": {"STEPS": 40}}, {"title": "x", "source": "..."}]
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoresearch.errors import LabError
from autoresearch.experiment import Proposal
from autoresearch.lab import constants
from autoresearch.records.ledger import Ledger

MAX_SCRIPT_BYTES = 16 << 20
ENTRY_KEYS = {"title", "source", "set", "reason"}


class Script:
    """Proposes its lines in order, once each."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], name: str) -> None:
        self.name = name
        self._entries = lines
        self._next_index = 0

    @classmethod
    def load(cls, path: Path) -> "Script":
        """A script from its file, or LabError naming the line that is wrong."""
        try:
            if path.stat().st_size > MAX_SCRIPT_BYTES:
                raise LabError(f"{path} is larger than 16 MB. Next: shorten it")
            lines = json.loads(path.read_text())
        except OSError as error:
            raise LabError(
                f"{path} cannot be read: {error.strerror}. Next: script:FILE, a file "
                "of JSON in the lab"
            ) from None
        except (ValueError, RecursionError) as error:
            raise LabError(
                f"{path} cannot be read as a script: {error}. Next: mend it"
            ) from None
        if not isinstance(lines, list):
            raise LabError(f"{path} is not a JSON list of proposals")
        for number, line in enumerate(lines):
            if why := find_fault(line):
                raise LabError(f"{path}: proposal {number} {why}")
        return cls(lines, f"script:{path.name}")

    @property
    def exhausted(self) -> bool:
        """Whether every line has been proposed."""
        return self._next_index >= len(self._entries)

    def propose(self, ledger: Ledger) -> Proposal | None:
        """The next line, on the train.py to start from."""
        start = ledger.starting_point
        if self.exhausted or start is None:
            return None
        line = self._entries[self._next_index]
        self._next_index += 1
        source, refused = ledger.load_source(start.blob), ""
        try:
            source = line.get("source") or constants.replace_constants(
                source, line["set"]
            )
        except (KeyError, TypeError, ValueError, AssertionError) as odd:
            refused = f"{self.name}: a value in set does not fit train.py ({odd})"
        return Proposal(
            None,
            line["title"],
            source,
            start.blob,
            self.name,
            line.get("reason", ""),
            refused=refused,
        )


def find_fault(line: object) -> str:
    """What is wrong with a line of a script; "" when nothing is."""
    if not isinstance(line, dict) or not isinstance(line.get("title"), str):
        return "has no title"
    if odd := sorted(set(line) - ENTRY_KEYS):
        known = ", ".join(sorted(ENTRY_KEYS))
        return f"has an unknown key {odd[0]!r}; the keys are: {known}"
    if ("source" in line) == ("set" in line):
        return "needs either source or set"
    if not isinstance(line.get("source", ""), str):
        return "has a source that is not text"
    if not isinstance(line.get("set", {}), dict):
        return "has a set that is not a table"
    return ""
