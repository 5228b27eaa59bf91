"""program.md: the user's strategy in prose, after a few settings in TOML.

The settings are in a ```toml fence at the start of the file; without one every default
applies. Code enforces the settings; the prose is advice to proposers. `Program`
documents each setting.
"""

import difflib
import re
import reprlib
import tomllib
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from autoresearch import plugins
from autoresearch.errors import LabError

SETTINGS_FENCE = re.compile(
    r"\A\s*```toml[ \t]*\r?\n(.*?)^```[ \t]*\r?$", re.DOTALL | re.MULTILINE
)
ANY_FENCE = re.compile(r"^(```[^\n`]*)\r?\n(.*?)^```", re.DOTALL | re.MULTILINE)
LARGEST_PROGRAM_BYTES = 1 << 20
LARGEST_FENCE_BYTES = 16 << 10  # TOML takes time quadratic in the depth of a key
CAGE_LEVELS = ("full", "landlock", "container", "seatbelt", "none")
MAX_HOURS = 1e5  # eleven years: later times cannot be formatted
POLICIES = ("noise-aware", "greedy", "anneal", "islands")
ALWAYS_SHOWN = (("train.py",), ("prepare.py",))  # a second copy would replace them
FORBIDDEN_ROOTS = ("/", "//", ".git", ".autoresearch")


@dataclass(frozen=True, slots=True)
class Program:
    """The settings of program.md. The first three are read once, when `run` starts."""

    budget_seconds: float | None = 300.0  # of training; None: a token budget applies
    budget_tokens: int | None = None  # of training text; None: a time budget applies
    budget_tolerance_seconds: float = 15.0  # how far from the budget a run may end
    readonly: tuple[str, ...] = ()  # further files shown to train.py
    cage: str = "full"  # the sandbox level that runs require
    max_memory_gb: float | None = None  # None: nine tenths of the machine's
    proposers: tuple[str, ...] = ("search",)
    policy: str = "noise-aware"
    early_kill: bool = True  # prune runs by their learning curve
    max_constants: int = 1  # in a change of constants only
    max_changed_lines: int = 80  # in any other change
    gain_per_20_added_lines: float = 0.001  # required for added complexity
    experiments: int | None = None  # None: no limit
    hours: float | None = None  # None: no limit
    dollars: float = 0.0  # cost limit of paid proposers
    prose: str = ""  # everything after the fence

    @property
    def tolerance_seconds(self) -> float:
        """The tolerance in force: 5 % of a short budget, but at least 2 s."""
        if self.budget_seconds is None:
            return self.budget_tolerance_seconds
        return min(self.budget_tolerance_seconds, max(2.0, self.budget_seconds / 20))


SETTINGS = tuple(field.name for field in fields(Program) if field.name != "prose")
SETTING_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("budget_seconds", "hours", "dollars"), (int, float)),
    **dict.fromkeys(("budget_tolerance_seconds", "max_memory_gb"), (int, float)),
    "gain_per_20_added_lines": (int, float),
    **dict.fromkeys(("budget_tokens", "max_constants", "experiments"), (int,)),
    "max_changed_lines": (int,),
    **dict.fromkeys(("cage", "policy"), (str,)),
    **dict.fromkeys(("readonly", "proposers"), (list,)),
    "early_kill": (bool,),
}
MAY_BE_ZERO = (
    "budget_tolerance_seconds",
    "dollars",
    "gain_per_20_added_lines",
    "max_changed_lines",
)
TYPE_DESCRIPTIONS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of texts",
    bool: "true or false",
}


def parse_program(text: str) -> Program:
    """Parse program.md; LabError names the line and the remedy."""
    if len(text) > LARGEST_PROGRAM_BYTES:
        raise LabError("program.md is larger than 1 MB. Next: shorten it")
    text = text.removeprefix("\ufeff")  # some editors write a byte order mark
    fence = SETTINGS_FENCE.match(text)
    if fence is None:
        if re.match(r"\s*```toml", text):
            raise LabError(
                "program.md: the ```toml fence on top is never closed. Next: a line "
                "of ``` below the settings"
            )
        return Program(prose=text)
    if len(fence[1]) > LARGEST_FENCE_BYTES:
        raise LabError(
            "program.md: the ```toml fence is larger than 16 KB. "
            "Next: move prose below the fence"
        )
    table = parse_toml(fence[1], first_line=text[: fence.start(1)].count("\n") + 1)
    settings = {name: validate_setting(name, value) for name, value in table.items()}
    reject_contradictions(settings)
    if "budget_tokens" in settings:
        settings["budget_seconds"] = None
    return Program(**settings, prose=text[fence.end() :])


def find_ignored_settings(text: str) -> str:
    """Report a fence with settings that is not read, with its line; "": there is none.

    Only a ```toml fence at the start of the file is read; any other is prose, and then
    every default applies.
    """
    if SETTINGS_FENCE.match(text.removeprefix("\ufeff")):
        return ""
    for fence in ANY_FENCE.finditer(text):
        names = [line.partition("=")[0].strip() for line in fence[2].splitlines()]
        if ignored := [name for name in names if name in SETTINGS]:
            line = text[: fence.start(1)].count("\n") + 1
            return (
                f"program.md line {line}: {ignored[0]} is set in a fence that is not "
                "read, so every default applies. Next: make it a ```toml fence at the "
                "start of the file"
            )
    return ""


def parse_toml(toml: str, first_line: int) -> dict[str, Any]:
    """Parse the fence's TOML; errors count lines from the start of program.md."""
    try:
        return tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"at line (\d+)", str(error))
        last_line = first_line + max(0, toml.count("\n") - 1)
        line = first_line + int(match[1]) - 1 if match else last_line
        what = str(error).split(" (at ")[0]
        raise LabError(
            f"program.md line {line}: {what}. Next: correct that line"
        ) from None
    except (ValueError, RecursionError):  # a number of 5000 digits, "[" 5000 times
        raise LabError(
            f"program.md: the settings from line {first_line} on hold a number or a "
            "table too large to read. Next: correct it"
        ) from None


def validate_setting(name: str, value: Any) -> Any:
    """Return one setting in the type of Program's field, or raise LabError."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name[:80], SETTINGS, 1, cutoff=0.0)[0]
        raise LabError(
            f"program.md: unknown setting {abbreviate_value(name)}; the nearest is "
            f"{near!r}. The settings are: {', '.join(SETTINGS)}. Next: correct it"
        )
    kinds = SETTING_TYPES[name]
    wrong = isinstance(value, bool) != (kinds == (bool,)) or not isinstance(
        value, kinds
    )
    if wrong or (kinds == (list,) and not all(isinstance(v, str) for v in value)):
        raise LabError(
            f"program.md: {name} is {abbreviate_value(value)}, but it takes "
            f"{TYPE_DESCRIPTIONS[kinds[-1]]}. Next: correct it"
        )
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str):
        return validate_choice(name, value)
    lowest = 0 if name in MAY_BE_ZERO else 1e-9
    limit = MAX_HOURS if name == "hours" else 1e15
    if not lowest <= value < limit:
        raise LabError(
            f"program.md: {name} is {abbreviate_value(value)}, but it must be positive"
            f"{' or 0' if name in MAY_BE_ZERO else ''} and below {limit:.0e}. "
            "Next: correct it"
        )
    return value


def validate_choice(name: str, value: str) -> str:
    """Return a word from the list of valid words, or raise LabError."""
    words = CAGE_LEVELS if name == "cage" else policy_names()
    if value not in words:
        raise LabError(
            f"program.md: {name} is {abbreviate_value(value)}, but it is one of: "
            f"{', '.join(words)}. Next: write one of them"
        )
    return value


def policy_names() -> tuple[str, ...]:
    """List the built-in policies and those of installed plugins."""
    return (*POLICIES, *plugins.plugin_names("policies"))


def abbreviate_value(value: object) -> str:
    """Shorten a wrong value for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not spell out more than 4300 digits
        return "a number of thousands of digits"


def reject_contradictions(settings: dict[str, Any]) -> None:
    """Raise LabError for settings that contradict each other or the lab."""
    if "budget_seconds" in settings and "budget_tokens" in settings:
        raise LabError(
            "program.md sets budget_seconds and budget_tokens; a run has one budget. "
            "Next: delete one of the two lines"
        )
    if settings.get("proposers") == ():
        raise LabError(
            "program.md: proposers is empty, so there would be no ideas. "
            'Next: proposers = ["search"], or delete the line for this default'
        )
    for path in settings.get("readonly", ()):
        parts = PurePosixPath(path).parts
        if not parts or parts[0] in FORBIDDEN_ROOTS or ".." in parts or "\0" in path:
            raise LabError(
                f"program.md: readonly {abbreviate_value(path)} is not inside the lab. "
                "Next: copy the file into it"
            )
        if parts in ALWAYS_SHOWN:
            raise LabError(
                f"program.md: readonly {abbreviate_value(path)} is shown to train.py "
                "anyway. Next: delete it from the list"
            )
