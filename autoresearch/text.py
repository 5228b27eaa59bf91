"""Text and numbers from outside, made safe to print, and how scores are written."""

import re
import unicodedata

# Characters that show nothing: variation selectors alone can encode a whole text.
INVISIBLE_CHARACTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)

ANSI_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)"
)
NOT_SHOWN = ("Cc", "Cf", "Zl", "Zp", "Cs")  # Unicode categories


def to_one_line(text: str) -> str:
    """Remove line breaks, control characters, escapes and hidden text."""
    bare = ANSI_ESCAPES.sub("", INVISIBLE_CHARACTERS.sub("", text))
    kept = (" " if unicodedata.category(c) in NOT_SHOWN else c for c in bare)
    return " ".join("".join(kept).split())


def strip_invisible(text: str) -> str:
    """Remove escapes, control characters, bidi marks, surrogates and hidden text."""
    if text.isascii() and text.isprintable():
        return text
    bare = ANSI_ESCAPES.sub("", INVISIBLE_CHARACTERS.sub("", text))
    return "".join(c if is_visible(c) else " " if c.isspace() else "" for c in bare)


def is_visible(character: str) -> bool:
    """Whether a character is shown as it is."""
    if character in "\n\t":
        return True
    return character.isprintable() and unicodedata.category(character)[0] != "C"


def format_number(value: float | None, form: str) -> str:
    """Format a number; "" for None."""
    return "" if value is None else format(value, form)


def format_score(value: float | None) -> str:
    """Format a score: four decimals, or three digits where four decimals show 0."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 0.1 <= abs(value) < 1e6 else f"{value:.3g}"


def format_exact(value: float, sign: str = "") -> str:
    """Format a number for comparison: six decimals, or six digits of a small one."""
    small = 0 < abs(value) < 0.1
    return format(value, f"{sign}.6g" if small else f"{sign}.6f")


def format_delta(delta: float | None) -> str:
    """Format a difference of scores, always with its sign."""
    if delta is None:
        return ""
    return f"{delta:+.4f}" if abs(delta) >= 0.0001 else f"{delta:+.2g}"
