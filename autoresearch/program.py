"""program.md: the researcher's strategy in prose, and on top a few settings in TOML.

The settings stand in a ```toml fence that comes first in the file; without one every
default holds. Code enforces what is in the fence; the prose is advice to proposers.
What each setting means is said once, in `Program`.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass, fields
from typing import Any

from autoresearch.errors import LabError

FENCE = re.compile(r"\A\s*```toml[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
LARGEST_PROGRAM_BYTES = 1 << 20
CAGES = ("full", "landlock", "container", "seatbelt", "none")
POLICIES = ("greedy",)


@dataclass(frozen=True, slots=True)
class Program:
    """What program.md asks for. The first three are read once, when `run` starts."""

    budget_seconds: float | None = 300.0  # of training; None: a token budget holds
    budget_tokens: int | None = None  # of training text; None: a time budget holds
    budget_tolerance_seconds: float = 15.0  # how far from the budget a run may end
    readonly: tuple[str, ...] = ()  # further files shown to train.py
    cage: str = "full"  # the level a run needs
    max_memory_gb: float | None = None  # None: what the machine has
    proposers: tuple[str, ...] = ("search",)
    policy: str = "greedy"
    max_constants: int = 1  # a change of constants only may change this many
    max_changed_lines: int = 80  # any other change
    gain_per_20_added_lines: float = 0.001  # the price of complexity
    experiments: int | None = None  # None: no end
    hours: float | None = None  # None: no end
    dollars: float = 0.0
    prose: str = ""  # everything after the fence

    @property
    def tolerance_seconds(self) -> float:
        """The tolerance that holds: never more than a twentieth of a short budget."""
        if self.budget_seconds is None:
            return self.budget_tolerance_seconds
        return min(self.budget_tolerance_seconds, max(2.0, self.budget_seconds / 20))


SETTINGS = tuple(field.name for field in fields(Program) if field.name != "prose")
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("budget_seconds", "hours", "dollars"), (int, float)),
    **dict.fromkeys(("budget_tolerance_seconds", "max_memory_gb"), (int, float)),
    "gain_per_20_added_lines": (int, float),
    **dict.fromkeys(("budget_tokens", "max_constants", "experiments"), (int,)),
    "max_changed_lines": (int,),
    **dict.fromkeys(("cage", "policy"), (str,)),
    **dict.fromkeys(("readonly", "proposers"), (list,)),
}
MAY_BE_ZERO = (
    "budget_tolerance_seconds",
    "dollars",
    "gain_per_20_added_lines",
    "max_changed_lines",
)
SAID = {int: "a whole number", float: "a number", str: "text", list: "a list of texts"}


def parse(text: str) -> Program:
    """The text of program.md -> Program, or LabError naming line and remedy."""
    if len(text) > LARGEST_PROGRAM_BYTES:
        raise LabError("program.md is larger than 1 MB. Next: shorten it")
    fence = FENCE.match(text)
    if fence is None:
        if re.match(r"\s*```toml", text):
            raise LabError("program.md: the ```toml fence on top is never closed")
        return Program(prose=text)
    table = read_table(fence[1], first_line=text[: fence.start(1)].count("\n") + 1)
    settings = {name: checked(name, value) for name, value in table.items()}
    contradictions(settings)
    if "budget_tokens" in settings:
        settings["budget_seconds"] = None
    return Program(**settings, prose=text[fence.end() :])


def read_table(toml: str, first_line: int) -> dict[str, Any]:
    """The fence's TOML; errors count lines from the top of program.md."""
    try:
        return tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = first_line + int(found[1]) - 1 if found else first_line
        what = str(error).split(" (at ")[0]
        raise LabError(f"program.md line {line}: {what}") from None


def checked(name: str, value: Any) -> Any:
    """One setting, in the type that Program holds, or LabError."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, cutoff=0.0)[0]
        raise LabError(
            f"program.md: unknown setting {name!r}; the nearest is {near!r}. "
            f"The settings are: {', '.join(SETTINGS)}"
        )
    kinds = KINDS[name]
    wrong = isinstance(value, bool) or not isinstance(value, kinds)
    if wrong or (kinds == (list,) and not all(isinstance(v, str) for v in value)):
        raise LabError(
            f"program.md: {name} is {value!r}, but it takes {SAID[kinds[-1]]}"
        )
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str):
        return chosen(name, value)
    lowest = 0 if name in MAY_BE_ZERO else 1e-9
    if not lowest <= value < 1e15:
        raise LabError(f"program.md: {name} is {value!r}, but it must be positive")
    return value


def chosen(name: str, value: str) -> str:
    """A word out of a list of words."""
    words = {"cage": CAGES, "policy": POLICIES}[name]
    if value not in words:
        raise LabError(
            f"program.md: {name} is {value!r}, but it is one of: {', '.join(words)}"
        )
    return value


def contradictions(settings: dict[str, Any]) -> None:
    """Settings that cannot hold together."""
    if "budget_seconds" in settings and "budget_tokens" in settings:
        raise LabError(
            "program.md sets budget_seconds and budget_tokens; a run has one budget. "
            "Next: delete one of the two lines"
        )
    for path in settings.get("readonly", ()):
        if path.startswith("/") or ".." in path.split("/") or not path:
            raise LabError(f"program.md: readonly {path!r} is not inside the lab")
