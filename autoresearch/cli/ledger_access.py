"""Opens the lab's ledger and reads prepare.py for commands that only show results.

These never execute prepare.py, so they work (and are fast) in a lab whose prepare.py
was edited or whose data is not prepared.
"""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoresearch.cli.terminal import print_line
from autoresearch.errors import NotReady
from autoresearch.lab.constants import read_literal
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger, copy_ledger
from autoresearch.reporting.status import find_program_faults


def open_ledger(lab: Lab) -> Ledger:
    """Open the lab's ledger; where the lab is read-only, a temporary copy of it.

    Raises NotReady if there is none yet.
    """
    if not lab.ledger_path.exists():
        raise NotReady(f"{lab.folder} has no ledger yet. Next: autoresearch run")
    path = lab.ledger_path
    if not lab.is_writable:
        place = tempfile.mkdtemp(prefix="autoresearch-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        path = copy_ledger(path, Path(place))
    return Ledger(path, lower_is_better=read_lower_is_better(lab))


def read_metric(lab: Lab) -> str:
    """The name of the lab's metric."""
    return str(read_prepare_literal(lab, "METRIC", "metric"))


def read_lower_is_better(lab: Lab) -> bool:
    """Whether a lower value of the metric is better."""
    return bool(read_prepare_literal(lab, "LOWER_IS_BETTER", True))


def read_prepare_literal(lab: Lab, name: str, default: Any) -> Any:
    """A constant of prepare.py, parsed without executing the file."""
    return read_literal(lab.read_file("prepare.py"), name, default)


def print_program_faults(lab: Lab, shown: Sequence[str] = ()) -> None:
    """Print what is wrong with program.md, except notes already `shown`."""
    for fault in find_program_faults(lab):
        if fault not in shown:
            print_line(f"note: {fault}")
