"""Every benchmark's quick form runs, and prints JSON with the keys its docstring names.

The numbers themselves are not looked at: a quick form is too short for that. None of
them needs a GPU, an account or a network.
"""

import ast
import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("[a-z]*.py"))
DATA = {"edits"}  # no benchmark, but what one is made from
QUICK_FORMS = [
    *((name,) for name in NAMES if name not in DATA),
    ("overhead", "--hearing"),
    ("step", "--serving"),
]
HEADING = re.compile(r"(?:Further )?JSON\b.*\bkeys\b.*:$")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the benchmarks seal their text: once for all of them."""
    return tmp_path_factory.mktemp("texts")


def documented_keys(name: str, options: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """(keys that must be printed, keys that may be), as patterns."""
    module = ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))
    required, possible, block = set(), set(), None
    for line in ast.get_docstring(module).splitlines():
        if HEADING.match(line):
            option = re.search(r"with (--\w+)", line)
            block = (
                required
                if set(option.groups() if option else ()) == set(options)
                else None
            )
            block = possible if line.startswith("Further") else block
        elif (key := re.match(r"  (\S+)", line)) and block is not None:
            block.add(key[1])
    return required, required | possible


@pytest.mark.timeout(600)  # seconds of CPU time, minutes on a busy machine
@pytest.mark.parametrize("form", QUICK_FORMS, ids=" ".join)
def test_the_quick_form_prints_the_documented_keys(form, cache, monkeypatch):
    name, *options = form
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
    required, possible = documented_keys(name, tuple(options))

    done = subprocess.run(
        (sys.executable, f"benchmarks/{name}.py", *options, "--quick", "--json"),
        cwd=BENCHMARKS.parent,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    records = found if isinstance(found, list) else [found]
    assert records
    for record in records:
        assert record["quick"] is True
        for pattern in required:
            assert fnmatch.filter(record, pattern), f"{pattern} is not printed"
        for key in record:
            assert any(fnmatch.fnmatchcase(key, p) for p in possible), f"{key} is new"


def test_the_readme_sorts_every_benchmark_into_one_table():
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")

    listed = re.findall(r"^\| \[`(\w+)`\]\(\w+\.py\) \|", readme, re.MULTILINE)

    assert sorted(listed) == sorted(set(NAMES) - DATA)


def test_the_keys_of_a_docstring_are_read_block_by_block():
    required, possible = documented_keys("overhead", ())

    assert "status_seconds_10000" in required
    assert "hearing_seconds_max" not in possible
    assert "hearing_seconds_max" in documented_keys("overhead", ("--hearing",))[0]
    assert "peak_gb" in documented_keys("step", ())[1] - documented_keys("step", ())[0]
