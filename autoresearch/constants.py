"""The constants on top of a train.py: read them, range them, rewrite them in place.

A constant is a capitalised name that the top level binds exactly once to a literal
number, truth value or text, or to plain arithmetic on numbers (`2**18`, `3 * 64`).
`A, B = 1, 2` are two; `BETAS = (0.8, 0.95)` are `BETAS[0]` and `BETAS[1]`.

Promises: nothing is executed; a rewrite touches only the bytes of the values it
changes, keeps their way of spelling, and is read back and checked before it is handed
out; hostile files (nested, huge, not Python) cost milliseconds and raise nothing.

Not covered: constants inside functions, in lower case, bound twice, or computed from
others; whether a value makes sense to train.py.

The comment on a constant's own line may say what may be tried. Each phrase opens the
comment or follows one of , ; : . ( and a space; words may follow it.

    # 0.01 .. 0.2              both ends included, searched evenly
    # 0.01 .. 0.2, log         searched by factors; also `, linear` and `, log(1-x)`
    # 2**14 .. 2**20           a power of two stays one
    # one of: "SSSL", "SL"     choices, also numbers; the only way to open up a text
    # fixed                    never touched

Without such a phrase the range is inferred (`inferred` below). Names with SEED in them
are never touched, whatever a comment says.
"""

import ast
import difflib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace as with_fields
from decimal import Decimal
from functools import cached_property
from typing import Literal

from autoresearch.errors import LabError

Value = bool | int | float | str
Kind = Literal["bool", "int", "float", "text"]
Scale = Literal["linear", "log", "log(1-x)", "powers of two", "choices"]

LARGEST_SOURCE_BYTES = 1 << 20  # larger ones are not even parsed
LARGEST_INT = 1 << 63
MOST_ELEMENTS = 16  # of a tuple; longer ones are tables, not settings
NAME = re.compile(r"_?[A-Z][A-Z0-9_]*")

# How far an inferred range reaches from the present value, as a factor.
REACH = 4.0

# Names that say what a number is, where its value alone does not.
FACTOR_LIKE = re.compile(r"(^|_)(LR|RATE|SCALE|GAIN|MULT|MULTIPLIER|CAP|STD)(_|$)")
BETA_LIKE = re.compile(r"(^|_)(BETAS?\d?|MOMENTUM|EMA|RHO)(_|$|\[)")
SHARE_LIKE = re.compile(
    r"(^|_)(DROPOUT|RATIO|FRACTION|FRAC|SHARE|WARMUP|WARMDOWN|COOLDOWN|FINAL|MIN)(_|$)"
)
BINARY_LIKE = re.compile(
    r"(^|_)(BATCH|WIDTH|DIM|SIZE|TOKENS|CONTEXT|BLOCK|BUCKETS|VOCAB|WINDOW|RANK)(_|$)"
)


@dataclass(frozen=True, slots=True)
class Range:
    """What may be tried for a constant."""

    scale: Scale
    low: float = 0.0  # both ends included; 0 and 0 for choices
    high: float = 0.0
    step: int = 1  # a whole number stays a multiple of this
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant of a train.py, and where it stands."""

    name: str
    value: Value
    spelling: str
    start: int  # byte offsets of the spelling in the UTF-8 source
    end: int
    comment: str  # on its line, without the #
    range: Range | None  # None: never touched

    @property
    def kind(self) -> Kind:
        """What sort of value it is."""
        return kind_of(self.value)


def kind_of(value: Value) -> Kind:
    """True is not 1, and 1 is not 1.0."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "text"


def same(one: Value, other: Value) -> bool:
    """Equal, and of one kind."""
    return kind_of(one) == kind_of(other) and one == other


# -- reading ---------------------------------------------------------------------------


def syntax(source: str) -> ast.Module | None:
    """The parsed file; None: not Python, or too big or too deep to say."""
    if len(source) > LARGEST_SOURCE_BYTES:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@dataclass(frozen=True)
class Reading:
    """A train.py taken apart: its constants, and the rest."""

    tree: ast.Module
    constants: dict[str, Constant]  # all of them, in the order of the file

    @cached_property
    def rest(self) -> str:
        """All code but the constants' values, without comments, layout, docstrings."""
        return normal(blanked(self.tree))


def take_apart(source: str) -> Reading | None:
    """Read a file whole; None when it is not Python."""
    tree = syntax(source)
    if tree is None:
        return None
    try:
        text = source.encode()
    except UnicodeEncodeError:
        return None
    starts = line_starts(text)
    found = {}
    for name, node in bindings(tree):
        value = evaluated(node)
        if value is not None:
            found[name] = constant_at(name, value, node, text, starts)
    return Reading(tree, found)


def literals(source: str) -> dict[str, Constant]:
    """Every constant, those that are never touched too. Empty when not Python."""
    reading = take_apart(source)
    return reading.constants if reading else {}


def read(source: str) -> dict[str, Constant]:
    """The constants that may be tuned: a range or choices are known."""
    return {name: c for name, c in literals(source).items() if c.range is not None}


def bindings(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Every name that the top level binds once, with the expression it is bound to."""
    pairs = [pair for statement in tree.body for pair in bound(statement)]
    times: dict[str, int] = {}
    for name, _ in pairs:
        times[name] = times.get(name, 0) + 1
    for name, node in pairs:
        if times[name] > 1 or not NAME.fullmatch(name):
            continue
        if isinstance(node, ast.Tuple | ast.List):
            if len(node.elts) <= MOST_ELEMENTS:
                yield from ((f"{name}[{i}]", e) for i, e in enumerate(node.elts))
        elif node is not None:
            yield name, node


def bound(statement: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """What one statement binds; None where that is not a plain `NAME = ...`."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            yield name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            yield name, value
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            plain = len(names) == len(values) and not any(
                isinstance(node, ast.Starred) for node in (*names, *values)
            )
            for i, target in enumerate(names):
                if isinstance(target, ast.Name):
                    yield target.id, values[i] if plain else None
        case _:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id, None


def evaluated(node: ast.expr) -> Value | None:
    """The value of a literal or of arithmetic on numbers; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | str):
        return node.value
    try:
        value = arithmetic(node)
    except (ArithmeticError, RecursionError):
        return None
    if value is None or abs(value) >= LARGEST_INT or not math.isfinite(value):
        return None if not isinstance(value, float) or not math.isfinite(value) else value
    return value


def arithmetic(node: ast.expr) -> int | float | None:
    """Work out a number without running code; huge powers are not worked out."""
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) in (int, float) else None  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = arithmetic(node.operand)
        if inner is None:
            return None
        return -inner if isinstance(node.op, ast.USub) else inner
    if not isinstance(node, ast.BinOp):
        return None
    left, right = arithmetic(node.left), arithmetic(node.right)
    if left is None or right is None or max(abs(left), abs(right)) >= 2.0**64:
        return None
    return operation(node.op, left, right)


def operation(
    op: ast.operator, left: int | float, right: int | float
) -> int | float | None:
    """One step of arithmetic."""
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return left // right
        case ast.Pow() if abs(right) <= 64:
            power = left**right
            return None if isinstance(power, complex) else power
        case ast.LShift() if isinstance(left, int) and isinstance(right, int):
            return left << right if 0 <= right <= 64 else None
    return None


def line_starts(text: bytes) -> list[int]:
    """Byte offset of every line, counted as the parser counts lines."""
    return [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", text))]


def constant_at(
    name: str, value: Value, node: ast.expr, text: bytes, starts: list[int]
) -> Constant:
    """A constant, from the place its expression has in the file."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    start = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    spelling = text[start:end].decode()
    stop = starts[node.end_lineno] if node.end_lineno < len(starts) else len(text)
    comment = comment_in(text[end:stop].decode())
    span = allowed(name, value, spelling, comment)
    return Constant(name, value, spelling, start, end, comment, span)


def comment_in(tail: str) -> str:
    """The comment in what follows a value on its line; "" when there is none.

    Elements of a tuple, and targets of one statement, share the comment of their line:
    other literals may stand between, and a quoted `#` among them is no comment.
    """
    found = re.match(r"""(?:[^#"']|"[^"\n]*"|'[^'\n]*')*#(.*)""", tail)
    return found[1].strip() if found else ""


# -- comparing -------------------------------------------------------------------------


def normal(tree: ast.Module) -> str:
    """Code without comments, layout and docstrings; it changes the tree in place."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=body)
                | ast.FunctionDef(body=body)
                | ast.AsyncFunctionDef(body=body)
                | ast.ClassDef(body=body)
            ) if body and is_text(body[0]):
                body[:1] = [ast.Pass()] if len(body) == 1 else []
    return ast.unparse(tree)


def is_text(statement: ast.stmt) -> bool:
    """Whether it is a bare text, as a docstring is."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def blanked(tree: ast.Module) -> ast.Module:
    """The tree with every constant's value replaced by one and the same mark."""
    values = {id(node) for _, node in bindings(tree) if evaluated(node) is not None}

    class Blank(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            if id(node) in values:
                return ast.copy_location(ast.Constant(...), node)
            return super().generic_visit(node)

    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            Blank().visit(statement)
    return tree
