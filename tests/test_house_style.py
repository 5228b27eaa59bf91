"""The house style, as tests: what a machine can check is never said twice."""

import ast
import functools
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
LONGEST_FILE_LINES = 600

# Rooms, low to high: a module imports only from rooms above its own line, and from its
# own room. What lies on top of the package is named by its module.
CORE = "atomic_file errors experiment plugins sealed_memory text user_config"
ROOMS = (
    CORE,
    "devices git stats",
    "data lab sandbox",
    "guest policies records",
    "measure proposers reporting",
    "pools",
    "run",
    "commands loop",
    "cli",
    "corpus scoring",  # what a committed prepare.py imports; nothing else does
    "__main__",
)

# What may never meet, whatever the rooms allow: (importing, imported), by prefix.
APART = (
    ("policies stats", "data devices git lab measure records sandbox"),
    (
        "proposers",
        "guest measure sandbox.process sandbox.backends sandbox.ipc sandbox.selftest",
    ),
    ("reporting", "guest measure sandbox loop run"),
    ("sandbox", "data guest lab measure records"),
    # The untrusted side knows nothing of what decides, and is never imported by it.
    ("guest", "git lab measure records run sandbox.process sandbox.selftest stats"),
    (
        "measure loop run records",
        "guest.dry_run guest.runtime guest.standalone guest.torch_model",
    ),
)

# Files that may print, with their reason.
PRINTING = {
    "cli": "this is what it is for",
    "guest/torch_model.py": "a model process's last words, read by the evaluator",
    "guest/standalone.py": "train.py at a person's keyboard",
    "commands/score.py": "python prepare.py score, at a person's keyboard",
}
# Places that catch everything, with their reason. All others name what they expect.
CATCHING_ALL = {
    (
        "lab/apparatus.py",
        "execute_module",
    ): "prepare.py is the researcher's and may raise anything",
    ("guest/dry_run.py", "main"): "an untrusted train.py may raise anything",
    (
        "guest/torch_model.py",
        "try_compile",
    ): "a compiler may, and what compiles by a train.py",
}
# Function names that are a bare participle; verbs that only look like one.
IRREGULAR = {
    "begun",
    "bound",
    "brought",
    "built",
    "chosen",
    "done",
    "drawn",
    "found",
    "given",
    "gone",
    "heard",
    "held",
    "hidden",
    "kept",
    "known",
    "laid",
    "left",
    "made",
    "said",
    "seen",
    "sent",
    "shown",
    "spent",
    "taken",
    "thought",
    "told",
    "written",
    "worn",
}
VERBS = {"embed", "exceed", "feed", "need", "proceed", "seed"}
CONTRACT_NAMES = {"spent"}  # train.py calls it

FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "manager", "handler", "misc"}
EXTRAS = ("torch", "numpy", "optuna", "pyarrow", "rustbpe", "tiktoken", "safetensors")
EXTRAS += ("pynvml", "pydantic_ai", "openai", "anthropic", "httpx2", "mcp")


CORE_ROOM = "core"


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """Its dotted name below the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {module_of(path) for path in MODULES}


def room_of(module: str) -> str:
    """The folder a module is in; for one on top of the package, its own name."""
    first = module.split(".")[0]
    return CORE_ROOM if first in CORE.split() else first


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Which modules of the package a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            first, _, rest = (node.module or "").partition(".")
            if first == "autoresearch":
                for alias in node.names:
                    whole = f"{rest}.{alias.name}".strip(".")
                    found.add(whole if whole in NAMES else rest)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                found |= {rest} if first == "autoresearch" else set()
    return found - {module_of(path), ""}


def floor_of(room: str) -> int:
    for number, line in enumerate(ROOMS):
        if room in line.split() or (room == CORE_ROOM and line is CORE):
            return number
    raise AssertionError(f"{room} is in no row; add it to ROOMS")


def is_below(module: str, prefixes: str) -> bool:
    return any(
        module == prefix or module.startswith(prefix + ".")
        for prefix in prefixes.split()
    )


def functions_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_every_class_name_means_one_thing():
    """Also when two modules would never meet: a reader searches by name."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name_of(path))

    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_modules_import_each_other_in_no_circle():
    arrows = {module_of(path): imports_of(path) for path in MODULES}
    left = {name: set(others) & set(arrows) for name, others in arrows.items()}
    while free := {name for name, others in left.items() if not others}:
        left = {n: others - free for n, others in left.items() if n not in free}

    assert left == {}


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

    def test_imports_only_from_lower_rooms_and_its_own(self, path):
        own = room_of(module_of(path))
        for other in imports_of(path):
            room = room_of(other)
            assert room == own or floor_of(room) < floor_of(own), f"imports {other}"

    def test_keeps_apart_what_may_never_meet(self, path):
        for importing, imported in APART:
            if is_below(module_of(path), importing):
                for other in imports_of(path):
                    assert not is_below(other, imported), other

    def test_is_read_in_one_sitting(self, path):
        lines = path.read_text(encoding="utf-8").count("\n")

        assert lines <= LONGEST_FILE_LINES

    def test_names_no_function_by_a_bare_participle(self, path):
        for function in functions_of(tree_of(path)):
            name = function.name.strip("_")
            decorators = " ".join(map(ast.unparse, function.decorator_list))
            if "property" in decorators or name in VERBS | CONTRACT_NAMES:
                continue
            participle = name in IRREGULAR or (name.endswith("ed") and "_" not in name)
            assert not participle, f"line {function.lineno}: {name}"

    def test_names_the_errors_it_catches(self, path):
        for function in functions_of(tree_of(path)):
            if (name_of(path), function.name) in CATCHING_ALL:
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
        if name_of(path) in PRINTING or room_of(module_of(path)) in PRINTING:
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
        if path.name in ("audit.py", "bits_per_byte.py", "torch_model.py"):
            return
        top = [
            n for n in tree_of(path).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        for node in top:
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            assert not {name.split(".")[0] for name in names} & set(EXTRAS)


def test_rooms_are_listed_once():
    words = " ".join(ROOMS).split()

    assert len(words) == len(set(words))
    listed = set(words) - set(CORE.split()) | {CORE_ROOM}
    assert {room_of(module_of(path)) for path in MODULES} - {""} == listed


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
    for name in PRINTING:
        files = [PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).glob("*")
        texts = [f.read_text(encoding="utf-8") for f in files if f.suffix == ".py"]
        assert any(re.search(r"\bprint\(|echo\(", text) for text in texts), name
    for name, function in CATCHING_ALL:
        assert function in {f.name for f in functions_of(tree_of(PACKAGE / name))}


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
    needed = """
        loop run.session records.recorder measure.evaluator measure.trainer guest.runtime
        proposers.registry reporting.report_html reporting.status commands.check
    """
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
