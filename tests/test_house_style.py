"""The house style, as tests: what a machine can check is never said twice."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "autoresearch"
# Labs speak another dialect on purpose.
MODULES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "labs"
]
TESTS = sorted((REPOSITORY / "tests").glob("test_*.py"))
PAGES = [
    path
    for path in (
        *sorted(REPOSITORY.glob("*.md")),
        *sorted(REPOSITORY.glob("docs/**/*.md")),
    )
    if "nights" not in path.parts
]
LONGEST_FUNCTION_LINES = 50  # most are far shorter; see the house style

# Low to high: a module imports only from layers above its own line.
LAYERS = (
    "edits noise",
    "experiment",
    "errors seeds",
    "chain channel chips constants fence levels metric program warden weights",
    "amd audit cage curves gains groups lab leash notebook policy rules served",
    "compiled rehearsal",
    "apparatus guest ledger machine pools probe sources walls",
    "evidence",
    "calibration certificate context corpus guidance results simulation standalone",
    "claims findings novelty probing replaying vitals waiting",
    "sandbox",
    "books chart evaluator morning views",
    "proposers",
    "founding loop preflight report serving share",
    "night",
    "ablation checking replication scoring verifying",
    "cli",
    "__main__",
)
# The one arrow that points up, with its reason.
UPWARD = {("guest", "standalone")}  # only when a person, not a harness, runs train.py

# What may never meet, whatever the layers allow: (who, whom).
APART = (
    ("policy", "apparatus cage channel lab ledger machine notebook"),
    ("proposers", "apparatus books cage channel evaluator notebook sandbox"),
    # The untrusted side knows nothing of what decides, and is never imported by it.
    (
        "guest probe rehearsal served standalone",
        "apparatus cage evaluator ledger lab sandbox",
    ),
    ("sandbox evaluator books loop night ledger", "guest standalone"),
    ("morning report views chart", "cage evaluator sandbox loop"),
)

# Files that may print, with their reason.
PRINTING = {
    "cli.py": "this is what it is for",
    "served.py": "a guest's last words, read by the evaluator",
    "standalone.py": "train.py at a person's keyboard",
    "scoring.py": "python prepare.py score, at a person's keyboard",
}
# Places that catch everything, with their reason. All others name what they expect.
CATCHING_ALL = {
    (
        "apparatus.py",
        "execute",
    ): "prepare.py is the researcher's and may raise anything",
    ("rehearsal.py", "main"): "an untrusted train.py may raise anything",
    ("served.py", "compiled"): "a compiler may, and what compiles by a train.py",
}

FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "manager", "handler", "misc"}
EXTRAS = ("torch", "numpy", "optuna", "pyarrow", "rustbpe", "tiktoken", "safetensors")
EXTRAS += ("pynvml", "pydantic_ai", "openai", "anthropic", "httpx2", "mcp")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def unit_of(path: Path) -> str:
    """The module, or the package it is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Which units of the package a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            first, *rest = (node.module or "").split(".")
            if first == "autoresearch":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found |= {p[1] for p in parts if p[0] == "autoresearch" and len(p) > 1}
    return found - {unit_of(path), "__version__"}


def layer_of(unit: str) -> int:
    for number, line in enumerate(LAYERS):
        if unit in line.split():
            return number
    raise AssertionError(f"{unit} is in no layer; add it to LAYERS")


def functions_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def classes_of_the_package() -> dict[str, list[str]]:
    """Every class and what it inherits from, without type parameters."""
    return {
        node.name: [ast.unparse(base).partition("[")[0] for base in node.bases]
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }


# -- every module ----------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=name_of)
class TestEveryModule:
    def test_begins_by_saying_what_it_is_in_one_line(self, path):
        said = ast.get_docstring(tree_of(path))

        assert said
        assert re.match(r"[^\n]+(\n\n|$)", said), "the first line is no whole sentence"

    def test_imports_only_from_lower_layers(self, path):
        unit = unit_of(path)
        if path.name == "__init__.py" and unit == "__init__":
            return
        for other in imports_of(path):
            lower = layer_of(other) < layer_of(unit)
            assert lower or (unit, other) in UPWARD, f"{unit} imports {other}"

    def test_keeps_apart_what_may_never_meet(self, path):
        for who, whom in APART:
            if unit_of(path) in who.split():
                assert not imports_of(path) & set(whom.split())

    def test_names_the_errors_it_catches(self, path):
        for function in functions_of(tree_of(path)):
            if (path.name, function.name) in CATCHING_ALL:
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler):
                    assert node.type, f"bare except in {function.name}"
                    everything = ast.unparse(node.type) in (
                        "Exception",
                        "BaseException",
                    )
                    passed_on = any(
                        isinstance(inner, ast.Raise) and inner.exc is None
                        for inner in node.body
                    )
                    assert passed_on or not everything, function.name

    def test_does_not_print(self, path):
        if path.name in PRINTING:
            return
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "click.echo", "sys.stdout.write"), (
                    f"line {node.lineno}"
                )

    def test_has_functions_that_fit_on_a_page(self, path):
        for function in functions_of(tree_of(path)):
            lines = function.end_lineno - function.lineno + 1
            assert lines <= LONGEST_FUNCTION_LINES, f"{function.name}: {lines} lines"

    def test_calls_nothing_a_helper_or_a_manager(self, path):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        defined = [n.name for n in ast.walk(tree_of(path)) if isinstance(n, kinds)]
        for name in (path.stem, path.parent.name, *defined):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
            assert not FORBIDDEN_WORDS & set(words), name

    def test_imports_heavy_things_only_where_they_are_needed(self, path):
        """At the top of a file only if the whole file is about them."""
        if path.name in ("audit.py", "metric.py", "served.py"):
            return
        top = [
            n for n in tree_of(path).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        for node in top:
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            assert not {name.split(".")[0] for name in names} & set(EXTRAS)


def test_layers_name_every_module_once():
    words = " ".join(LAYERS).split()

    assert len(words) == len(set(words))
    assert {unit_of(path) for path in MODULES} - {"__init__"} <= set(words)


def test_no_class_inherits_from_a_concrete_class_of_ours():
    classes = classes_of_the_package()

    def is_error(name):
        bases = classes.get(name, [])
        return "Exception" in bases or any(is_error(base) for base in bases)

    for name, bases in classes.items():
        for base in bases:
            if base in classes and "Protocol" not in classes[base]:
                assert is_error(base), f"{name} inherits from {base}"


def test_exceptions_to_these_rules_still_exist():
    by_name = {path.name: path for path in MODULES}
    for name in PRINTING:
        assert re.search(r"\bprint\(|echo\(", by_name[name].read_text()), name
    for name, function in CATCHING_ALL:
        assert function in {f.name for f in functions_of(tree_of(by_name[name]))}
    for who, whom in UPWARD:
        assert whom in imports_of(PACKAGE / f"{who}.py")


# -- a machine without the extras ------------------------------------------------------

BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def isolated(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        (sys.executable, "-I", "-c", BLOCKED + code), capture_output=True, text=True
    )


def test_the_command_line_needs_none_of_the_extras():
    done = isolated(
        "import autoresearch.cli\n"
        "sys.argv = ['autoresearch', '--help']\n"
        "autoresearch.cli.main()\n"
    )

    assert done.returncode == 0, done.stderr
    assert "Usage: autoresearch" in done.stdout


def test_the_loop_and_all_it_needs_for_a_lab_without_tensors_need_none_either():
    needed = "loop night books evaluator sandbox guest proposers report views checking"
    code = "".join(f"import autoresearch.{name}\n" for name in needed.split())

    done = isolated(code)

    assert done.returncode == 0, done.stderr


def test_importing_the_command_line_prints_nothing_and_loads_no_extra():
    code = f"import sys, autoresearch.cli; print(sorted({set(EXTRAS)!r} & set(sys.modules)))"

    done = subprocess.run(
        (sys.executable, "-I", "-c", code), capture_output=True, text=True
    )

    assert (done.stdout, done.stderr) == ("[]\n", "")


# -- tests -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
class TestEveryTestFile:
    def test_says_what_it_is_about(self, path):
        assert ast.get_docstring(tree_of(path))

    def test_has_sentences_for_names(self, path):
        for function in functions_of(tree_of(path)):
            if function.name.startswith("test_"):
                assert function.name.count("_") >= 3, function.name

    def test_uses_no_mocks(self, path):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = ast.unparse(node)
                assert "mock" not in names, f"line {node.lineno}"
            elif isinstance(node, ast.arg):
                assert node.arg != "mocker"


# -- pages -----------------------------------------------------------------------------

LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
BRANCH = re.compile(r"^(?P<lead>[│ ]*)[├└]── (?P<name>[\w./-]+)")


def headings_of(path: Path) -> set[str]:
    """The anchors that a page offers."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in found)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_links_between_pages_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in headings_of(path), target


def test_the_tree_in_the_readme_is_the_tree_there_is():
    readme = REPOSITORY / "README.md"
    if not readme.exists():
        pytest.skip("no README yet")
    blocks = re.findall(
        r"```\w*\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL
    )
    trees = [block for block in blocks if "├── " in block]
    assert trees, "the README shows no tree"
    for block in trees:
        first, *lines = block.splitlines()
        above = [REPOSITORY / first.split()[0]]
        for line in lines:
            if branch := BRANCH.match(line):
                depth = len(branch["lead"]) // 4 + 1
                above[depth:] = [above[depth - 1] / branch["name"]]
                assert above[-1].exists(), line
            elif line and not line.startswith((" ", "│")):
                above = [REPOSITORY / line.split()[0]]
                assert above[0].exists(), line
