"""What a proposal has to satisfy before it costs a second of training.

Pure functions of the proposed and the present train.py. A refusal is one line that says
what is wrong; the limits are program.md's. Not covered: whether the idea is any good.
"""

import ast
import difflib
import hashlib
import warnings
import zlib
from dataclasses import dataclass

from autoresearch.experiment import Change
from autoresearch.lab import constants

LARGEST_BYTES = 100_000
# A file that does not compress carries data, not code (weights, tables, text).
LARGEST_COMPRESSED_BYTES = 64_000
# What walks a tree by recursion ends Python at some 300 levels; people write 20.
MOST_DEPTH = 150
SEEDING = ("manual_seed", "manual_seed_all", "seed", "default_rng", "Random")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one proposal may change."""

    max_constants: int = 1  # when nothing but constants differs
    max_changed_lines: int = 80  # otherwise, added and removed


def refusal(source: str, parent: str, limits: Limits) -> str | None:
    """Why this proposal is refused; None when it may run."""
    if why := not_python(source):
        return why
    if fingerprint(source) == fingerprint(parent):
        return "nothing changed but comments and layout"
    if fingerprint(source, seedless=True) == fingerprint(parent, seedless=True):
        return "only a seed changed, and the seed is the harness's"
    if constants.skeleton(source) == constants.skeleton(parent):
        before, after = constants.values_of(parent), constants.values_of(source)
        names = [name for name in after if after[name] != before.get(name)]
        if len(names) > limits.max_constants:
            return (
                f"{len(names)} constants changed ({', '.join(names[:6])}); "
                f"program.md allows max_constants = {limits.max_constants}"
            )
        return None
    count = changed_lines(parent, source)
    if count > limits.max_changed_lines:
        return (
            f"{count} lines changed; program.md allows "
            f"max_changed_lines = {limits.max_changed_lines}"
        )
    return None


def not_python(source: str) -> str | None:
    """Why this cannot be a train.py at all; None when it can."""
    try:
        body = source.encode()
    except UnicodeEncodeError:
        return "not UTF-8 text"
    if len(body) > LARGEST_BYTES:
        return f"{len(body)} bytes; a train.py has at most {LARGEST_BYTES}"
    if len(zlib.compress(body)) > LARGEST_COMPRESSED_BYTES:
        return "it does not compress like code; data has no place in train.py"
    try:
        if depth(parsed(source)) > MOST_DEPTH:
            return f"not Python that can be read: nested deeper than {MOST_DEPTH}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "train.py", "exec")
    except SyntaxError as error:
        return f"not Python: {error.msg} (line {error.lineno})"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"not Python that can be read: {type(error).__name__}"
    return None


def depth(tree: ast.AST) -> int:
    """How deep it is nested; without recursion, which is what too deep a one ends."""
    deepest, waiting = 0, [(tree, 1)]
    while waiting:
        node, level = waiting.pop()
        deepest = max(deepest, level)
        waiting += [(child, level + 1) for child in ast.iter_child_nodes(node)]
    return deepest


def parsed(source: str) -> ast.Module:
    """The syntax tree, without the warnings that odd strings cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return constants.tree_of(source)


def fingerprint(source: str, *, seedless: bool = False) -> str:
    """A name for the code, whatever its comments, layout and docstrings."""
    try:
        tree = parsed(source)
        bare(tree)
        if seedless:
            tree = Seedless().visit(tree)
        text = ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        text = source  # it will be refused; until then it needs some name
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def bare(tree: ast.AST) -> None:
    """Drop docstrings and other statements that are only a text."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [n for n in body if not is_text(n)]
            body[:] = kept or [ast.Pass()] if body else body


def is_text(node: ast.AST) -> bool:
    """Whether a statement is nothing but a text."""
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


class Seedless(ast.NodeTransformer):
    """Blanks seeds, so that files that differ in nothing else come out equal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
        elif isinstance(node.func, ast.Name):
            name = node.func.id
        if name in SEEDING:
            node.args, node.keywords = [], []
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """A call that only seeds is dropped whole: adding one changes a seed too."""
        match node.value:
            case ast.Call(func=ast.Attribute(attr=name)) if name in SEEDING:
                return None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        match node.targets:
            case [ast.Name(id=name)] if "SEED" in name.upper():
                node.value = ast.Constant(0)
        return node


def changed_lines(parent: str, source: str) -> int:
    """Lines added plus lines removed."""
    diff = difflib.unified_diff(parent.splitlines(), source.splitlines(), n=0)
    return sum(
        line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in diff
    )


def change(before: str, source: str) -> Change:
    """How many lines of code longer or shorter a file became."""
    more = code_lines(source) - code_lines(before)
    return Change(max(0, more), max(0, -more))


def code_lines(source: str) -> int:
    """Lines that are neither blank nor only a comment."""
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#")
        for line in source.splitlines()
    )
