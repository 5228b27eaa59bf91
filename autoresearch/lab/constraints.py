"""Constraints that a proposal must satisfy before it is trained.

Pure functions of the proposed and the current train.py. A refusal is one line that says
what is wrong; the limits come from program.md. Not covered: whether the idea is good.
"""

import ast
import difflib
import hashlib
import warnings
import zlib
from dataclasses import dataclass

from autoresearch.experiment import CodeSizeChange
from autoresearch.lab import constants

LARGEST_BYTES = 100_000
# A file that does not compress contains data, not code (weights, tables, text).
LARGEST_COMPRESSED_BYTES = 64_000
# Recursion over a syntax tree fails at some 300 levels; hand-written code has 20.
MAX_NESTING_DEPTH = 150
SEEDING_FUNCTIONS = ("manual_seed", "manual_seed_all", "seed", "default_rng", "Random")


@dataclass(frozen=True, slots=True)
class ChangeLimits:
    """How much one proposal may change."""

    max_constants: int = 1  # when nothing but constants differs
    max_changed_lines: int = 80  # otherwise: added plus removed


def find_violation(source: str, parent: str, limits: ChangeLimits) -> str | None:
    """Say why this proposal is refused; None: it may run."""
    if why := find_python_fault(source):
        return why
    if fingerprint_code(source) == fingerprint_code(parent):
        return "nothing changed but comments and layout"
    if fingerprint_code(source, seedless=True) == fingerprint_code(
        parent, seedless=True
    ):
        return "only a seed changed, and the seed is the harness's"
    if constants.blank_constants(source) == constants.blank_constants(parent):
        before, after = (
            constants.constant_values(parent),
            constants.constant_values(source),
        )
        names = [name for name in after if after[name] != before.get(name)]
        if len(names) > limits.max_constants:
            return (
                f"{len(names)} constants changed ({', '.join(names[:6])}); "
                f"program.md allows max_constants = {limits.max_constants}"
            )
        return None
    count = count_changed_lines(parent, source)
    if count > limits.max_changed_lines:
        return (
            f"{count} lines changed; program.md allows "
            f"max_changed_lines = {limits.max_changed_lines}"
        )
    return None


def find_python_fault(source: str) -> str | None:
    """Say why this cannot be a train.py at all; None: it can."""
    try:
        body = source.encode()
    except UnicodeEncodeError:
        return "not UTF-8 text"
    if len(body) > LARGEST_BYTES:
        return f"{len(body)} bytes; a train.py has at most {LARGEST_BYTES}"
    if len(zlib.compress(body)) > LARGEST_COMPRESSED_BYTES:
        return "it does not compress like code; data has no place in train.py"
    try:
        if measure_nesting_depth(parse_without_warnings(source)) > MAX_NESTING_DEPTH:
            return (
                f"not Python that can be read: nested deeper than {MAX_NESTING_DEPTH}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "train.py", "exec")
    except SyntaxError as error:
        return f"not Python: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"not Python that can be read: {type(error).__name__}"
    return None


def measure_nesting_depth(tree: ast.AST) -> int:
    """Measure the nesting depth without recursion, which a deep tree would exhaust."""
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, level = stack.pop()
        deepest = max(deepest, level)
        stack += [(child, level + 1) for child in ast.iter_child_nodes(node)]
    return deepest


def parse_without_warnings(source: str) -> ast.Module:
    """Parse the syntax tree, without warnings of invalid escape sequences."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return constants.parse_ast(source)


def fingerprint_code(source: str, *, seedless: bool = False) -> str:
    """Hash the code without its comments, layout and docstrings.

    seedless: without seeds as well.
    """
    try:
        tree = parse_without_warnings(source)
        strip_docstrings(tree)
        if seedless:
            tree = SeedBlanker().visit(tree)
        text = ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        text = source  # it is refused later; until then it needs some hash
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def strip_docstrings(tree: ast.AST) -> None:
    """Drop docstrings and other statements that are only a string."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not is_string_statement(n)]
            body[:] = kept or [ast.Pass()] if body else body


def is_string_statement(node: ast.AST) -> bool:
    """Whether a statement is only a string."""
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


class SeedBlanker(ast.NodeTransformer):
    """Blanks seeds, so that files that differ in nothing else become equal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
        elif isinstance(node.func, ast.Name):
            name = node.func.id
        if name in SEEDING_FUNCTIONS:
            node.args, node.keywords = [], []
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop a statement that only seeds: adding one changes the seed, too."""
        match node.value:
            case ast.Call(func=ast.Attribute(attr=name)) if name in SEEDING_FUNCTIONS:
                return None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        match node.targets:
            case [ast.Name(id=name)] if "SEED" in name.upper():
                node.value = ast.Constant(0)
        return node


def count_changed_lines(parent: str, source: str) -> int:
    """Count lines added plus lines removed."""
    diff = difflib.unified_diff(parent.splitlines(), source.splitlines(), n=0)
    return sum(
        line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in diff
    )


def compare_code_size(before: str, source: str) -> CodeSizeChange:
    """Compare two files by their number of lines of code."""
    more = count_code_lines(source) - count_code_lines(before)
    return CodeSizeChange(max(0, more), max(0, -more))


def count_code_lines(source: str) -> int:
    """Count lines that are neither blank nor only a comment."""
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#")
        for line in source.splitlines()
    )
