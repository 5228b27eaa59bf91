"""`autoresearch try`: queue a user's train.py. Also what stopping now would lose."""

import difflib
import getpass
from contextlib import suppress
from pathlib import Path

from autoresearch.errors import LabError, NotReady
from autoresearch.experiment import Champion, Proposal
from autoresearch.git import compute_blob_id
from autoresearch.lab import constraints
from autoresearch.lab.folder import LARGEST_FILE_BYTES, Lab
from autoresearch.records.ledger import Ledger
from autoresearch.reporting.status import read_live_status
from autoresearch.text import to_one_line


def queue_file(
    lab: Lab, ledger: Ledger, file: Path, title: str, by: str, reason: str
) -> tuple[int, float]:
    """Queue a train.py. Returns its experiment and the expected minutes to its verdict.

    Raises LabError for a file that cannot be read, NotReady before there is a champion.
    """
    source = read_candidate(file)
    return queue_source(
        lab, ledger, source, title, by, reason, find_nearest_base(ledger, source)
    )


def find_nearest_base(ledger: Ledger, source: str) -> Champion | None:
    """What a file is an edit of: the champion, or the file that `context` shows.

    A user copies train.py, which is the champion's; an agent may have edited the file
    that it read. The one with fewer changed lines is taken. None: there is no champion.
    """
    champion, start = ledger.champion, ledger.starting_point
    if champion is None or start is None or start.blob == champion.blob:
        return champion
    return min(
        (champion, start),
        key=lambda one: count_changed_lines(ledger.load_source(one.blob), source),
    )


def count_changed_lines(before: str, after: str) -> int:
    """How many lines a diff of two files removes or adds."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    return sum(line[0] in "+-" for line in lines)


def queue_source(
    lab: Lab,
    ledger: Ledger,
    source: str,
    title: str,
    by: str,
    reason: str,
    start: Champion | None = None,
) -> tuple[int, float]:
    """`queue_file` for a source text. `start` is what it was edited from; None: the
    champion's train.py.
    """
    champion = start or ledger.champion
    if champion is None:
        raise NotReady(
            "there is no champion to compare with yet. Next: autoresearch run, which "
            "first measures this lab's own train.py"
        )
    if not to_one_line(title):
        raise LabError('the title is empty. Next: autoresearch try FILE "what is new"')
    name = to_one_line(by) or read_login_name()
    program_text = lab.read_file("program.md")
    ledger.store_source(compute_blob_id(program_text), program_text)
    proposal = Proposal(
        None,
        to_one_line(title)[:200],
        source,
        champion.blob,
        f"human:{name}",
        reason,
        compute_blob_id(program_text),
    )
    waiting_count = len(ledger.load_open_proposals())
    code = constraints.fingerprint_code(source)
    admitted = ledger.admit_proposal(proposal, compute_blob_id(source), code)
    assert admitted.number is not None
    row = ledger.load_row(champion.number)
    seconds = 0.0 if row is None else row.seconds + row.evaluation_seconds
    return admitted.number, (waiting_count + 1) * seconds / 60


def read_login_name() -> str:
    """The user's name; from the password database where $USER is unset (containers)."""
    with suppress(OSError, KeyError, ImportError):
        return to_one_line(getpass.getuser()) or "someone"
    return "someone"


def describe_lost_runs(lab: Lab) -> str:
    """What `stop --now` loses; "" where nothing runs."""
    status = read_live_status(lab) or {"runs": []}
    if not status["runs"]:
        return ""
    finished = {run.get("experiment"): run.get("finished", 0) for run in status["runs"]}
    count = sum(finished.values())
    others = f", and so are {count} finished runs of its experiment" if count else ""
    return (
        f"the current run is lost{others}; autoresearch run starts the experiment again"
    )


def read_candidate(file: Path) -> str:
    """The text of a train.py anywhere on disk. Raises LabError."""
    try:
        if file.stat().st_size > LARGEST_FILE_BYTES:
            raise LabError(f"{file} is larger than 1 MB. Next: shorten it")
        return file.read_bytes().decode()
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LabError(f"{file} is not UTF-8 text. Next: save it as such") from None


def move_ledger_aside(path: Path) -> None:
    """Rename a ledger to *.before-rebuild, with its journal files."""
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.replace(path.with_name(f"{path.name}.before-rebuild{suffix}"))
