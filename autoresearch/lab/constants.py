"""The constants of a train.py: read by `ast`, never executed, and rewritten in place.

A constant is a top-level capital NAME = literal: a number, `2**18`, `3 * 64`, a bool,
or a string whose comment lists the choices. Its range comes from its comment,

    MATRIX_LR = 0.04        # 0.005 .. 0.3, log
    WINDOW_PATTERN = "SSSL" # one of: "SSSL", "SSL", "L"
    HEAD_SIZE = 64          # fixed

or is inferred from its value. Seeds are never changed. Replacing keeps the rest of the
file as it is, byte for byte, and the spelling of the number (2**18, 1e-3).

Not covered: constants inside functions, tuples, and whether a value makes sense.
"""

import ast
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch.errors import LabError

Value = int | float | bool | str

NUMBER_PATTERN = r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?(?:\s*\*\*\s*\d+)?"
RANGE_COMMENT = re.compile(
    rf"({NUMBER_PATTERN})\s*\.\.\s*({NUMBER_PATTERN})", re.IGNORECASE
)
CHOICES_COMMENT = re.compile(r"one of:\s*(.+)")
FIXED_COMMENT = re.compile(r"\bfixed\b")
LOG_COMMENT = re.compile(r",\s*log\b")
DEFAULT_RANGE_FACTOR = 8.0  # without a stated range: divided and multiplied by this


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant that a proposal may change."""

    name: str
    value: Value
    spelling: str
    start: int  # byte offsets of the spelling in the file
    end: int
    low: float | None  # None: choices instead of a range
    high: float | None
    is_log_scale: bool
    choices: tuple[Value, ...]  # empty: a range instead
    is_fixed: bool


def parse_constants(source: str) -> tuple[Constant, ...]:
    """Parse the constants of a train.py, in file order. Raises SyntaxError."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    constants: dict[str, Constant] = {}
    for node in parse_ast(source).body:
        name, spot = match_assignment(node)
        if name is None or spot is None or spot.end_lineno is None:
            continue
        value = evaluate_literal(spot)
        if value is None:
            continue
        start = starts[spot.lineno - 1] + spot.col_offset
        end = starts[spot.end_lineno - 1] + (spot.end_col_offset or 0)
        rest = lines[spot.end_lineno - 1][spot.end_col_offset or 0 :].decode()
        comment = rest.partition("#")[2]
        spelling = source.encode()[start:end].decode()
        constant = build_constant(name, value, spelling, start, end, comment)
        if constant is not None:
            constants[name] = constant  # assigned twice: the last assignment counts
    return tuple(constants.values())


# CPython 3.11 tracks the depth of the syntax tree under construction per interpreter,
# and raises SystemError when two threads build trees at once.
AST_LOCK = threading.Lock()


def parse_ast(source: str) -> ast.Module:
    """Parse a syntax tree, thread-safe; raises what `ast.parse` raises."""
    with AST_LOCK:
        return ast.parse(source)


def match_assignment(node: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Return (NAME, expression) of an assignment to one capital name, or Nones."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
            return name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=value) if name.isupper():
            return name, value
    return None, None


def evaluate_literal(node: ast.expr) -> Value | None:
    """Evaluate a literal or simple arithmetic on literals; None for others."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = evaluate_literal(operand)
            return None if inner is None or isinstance(inner, str | bool) else -inner
        case ast.BinOp(left=left, op=op, right=right):
            return evaluate_arithmetic(
                evaluate_literal(left), op, evaluate_literal(right)
            )
    return None


def evaluate_arithmetic(
    left: Value | None, op: ast.operator, right: Value | None
) -> Value | None:
    """Evaluate `left op right`; None unless the result is a number below 1e18."""
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    try:
        match op:
            case ast.Pow() if 0 <= right <= 64 and abs(left) <= 1024:
                value = left**right
            case ast.Mult():
                value = left * right
            case ast.Div():
                value = left / right
            case ast.FloorDiv():
                value = left // right
            case ast.Add():
                value = left + right
            case ast.Sub():
                value = left - right
            case _:
                return None
    except (ArithmeticError, ValueError):
        return None
    return value if abs(value) < 1e18 else None


def build_constant(
    name: str, value: Value, spelling: str, start: int, end: int, comment: str
) -> Constant | None:
    """Build a constant with its range or choices; None: a string without choices."""
    fixed = "SEED" in name or bool(FIXED_COMMENT.search(comment))
    place = (name, value, spelling, start, end)
    if listed := CHOICES_COMMENT.search(comment):
        try:
            choices = tuple(ast.literal_eval(f"({listed[1].strip().rstrip(',')},)"))
        except (ValueError, SyntaxError):
            choices = ()
        return Constant(*place, None, None, False, choices or (value,), fixed)
    if isinstance(value, bool):
        return Constant(*place, None, None, False, (False, True), fixed)
    if isinstance(value, str):
        return None
    if stated := RANGE_COMMENT.search(comment):
        low, high = (parse_number(part) for part in stated.groups())
        log = (bool(LOG_COMMENT.search(comment)) or "**" in spelling) and low > 0
        return Constant(*place, min(low, high), max(low, high), log, (), fixed)
    return Constant(*place, *infer_range(value), (), fixed)


def parse_number(text: str) -> float:
    """Parse a number as comments spell it: 0.1, 1e-3, 2**14, 1_000."""
    base, _, power = text.replace(" ", "").replace("_", "").partition("**")
    return float(base) ** int(power) if power else float(base)


def infer_range(value: int | float) -> tuple[float, float, bool]:
    """Infer (low, high, log) for a number whose comment states no range."""
    if value == 0:
        return (0.0, 1.0, False) if isinstance(value, float) else (0.0, 4.0, False)
    if value < 0:
        return value * 2, 0.0, False
    if isinstance(value, int):
        return (
            max(1.0, math.ceil(value / DEFAULT_RANGE_FACTOR)),
            value * DEFAULT_RANGE_FACTOR,
            value > 8,
        )
    if 0.5 < value < 1:  # betas and shares: the distance to 1 is scaled
        return max(0.0, 1 - 8 * (1 - value)), 1 - (1 - value) / 8, False
    high = value * DEFAULT_RANGE_FACTOR
    return value / DEFAULT_RANGE_FACTOR, min(high, 1.0) if value < 1 else high, True


def replace_constants(source: str, values: Mapping[str, Value]) -> str:
    """Change these constants and nothing else; LabError for unknown names."""
    known = {constant.name: constant for constant in parse_constants(source)}
    body = source.encode()
    for name in sorted(values, key=lambda n: -known[n].start if n in known else 0):
        if name not in known:
            raise LabError(
                f"train.py has no constant {name!r}; it has: {', '.join(sorted(known))}"
            )
        old = known[name]
        same = values[name] == old.value
        spelling = old.spelling if same else format_value(values[name], old)
        body = body[: old.start] + spelling.encode() + body[old.end :]
    changed = body.decode()
    now = {constant.name: constant.value for constant in parse_constants(changed)}
    for name, value in values.items():
        assert now[name] == value or format_value(value, known[name]) == format_value(
            now[name], known[name]
        ), f"{name} came out as {now[name]!r}"
    return changed


def format_value(value: Value, like: Constant) -> str:
    """Spell a value as the file spells that constant."""
    if isinstance(value, bool) or isinstance(like.value, bool):
        return str(bool(value))
    if isinstance(value, str):
        quote = like.spelling[:1] if like.spelling[:1] in "'\"" else '"'
        return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
    power = round(math.log2(value)) if value > 0 else 0
    if "**" in like.spelling and value > 0 and 2**power == value:
        return f"2**{power}"
    if isinstance(like.value, int) and float(value).is_integer():
        return f"{int(value):_}" if "_" in like.spelling else str(int(value))
    text = repr(float(value))
    if "e" in like.spelling.lower() and value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return text if "e" not in text else f"{value:.10f}".rstrip("0")


def round_significant(value: float, digits: int = 2) -> float:
    """Round to significant digits, as a person would write it."""
    return float(f"{value:.{digits - 1}e}") if value else 0.0


def constant_values(source: str) -> dict[str, Value]:
    """Return NAME -> value of all constants."""
    return {constant.name: constant.value for constant in parse_constants(source)}


def blank_constants(source: str) -> str:
    """Return the code with every constant set to 0: equal if only constants differ."""
    tree = parse_ast(source)
    names = {constant.name for constant in parse_constants(source)}
    for node in tree.body:
        name, _ = match_assignment(node)
        if name in names and isinstance(node, ast.Assign | ast.AnnAssign):
            node.value = ast.Constant(0)
    return ast.unparse(tree)


def read_literal(source: str, name: str, default: Any) -> Any:
    """Read a top-level constant of a file without running it."""
    try:
        body = parse_ast(source).body
    except SyntaxError:
        return default
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    return node.value.value
    return default
