"""`autoresearch try`: put a person's train.py in the queue."""

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
    """Put a person's train.py on record: (experiment, minutes to its verdict)."""
    source = read_candidate(file)
    return queue_source(
        lab, ledger, source, title, by, reason, find_nearest_base(ledger, source)
    )


def find_nearest_base(ledger: Ledger, source: str) -> Champion | None:
    """What a file was made of: the champion's, or what `context` shows to start from.

    A person copies train.py, which is the champion's; an agent may have taken the file
    that it read. Whichever is nearer. None: there is no champion.
    """
    champion, start = ledger.champion, ledger.starting_point
    if champion is None or start is None or start.blob == champion.blob:
        return champion
    return min(
        (champion, start),
        key=lambda one: count_changed_lines(ledger.load_source(one.blob), source),
    )


def count_changed_lines(before: str, after: str) -> int:
    """How many lines two files differ by."""
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
    """The same for a text, changed from `start`; None: from the champion's."""
    champion = start or ledger.champion
    if champion is None:
        raise NotReady(
            "there is no champion to compare with yet. Next: autoresearch run, which "
            "measures the train.py of this lab first"
        )
    if not to_one_line(title):
        raise LabError('the title is empty. Next: autoresearch try FILE "what is new"')
    name = to_one_line(by) or read_login_name()
    strategy = lab.read_file("program.md")
    ledger.store_source(compute_blob_id(strategy), strategy)
    proposal = Proposal(
        None,
        to_one_line(title)[:200],
        source,
        champion.blob,
        f"human:{name}",
        reason,
        compute_blob_id(strategy),
    )
    waiting = len(ledger.load_open_proposals())
    code = constraints.fingerprint_code(source)
    admitted = ledger.admit_proposal(proposal, compute_blob_id(source), code)
    assert admitted.number is not None
    row = ledger.load_row(champion.number)
    each = 0.0 if row is None else row.seconds + row.evaluation_seconds
    return admitted.number, (waiting + 1) * each / 60


def read_login_name() -> str:
    """Who sits here: root in a container has no $USER, and a name all the same."""
    with suppress(OSError, KeyError, ImportError):
        return to_one_line(getpass.getuser()) or "someone"
    return "someone"


def describe_lost_runs(lab: Lab) -> str:
    """What `stop --now` throws away of what is in hand; "" where nothing is."""
    found = read_live_status(lab) or {"runs": []}
    known = {run.get("experiment"): run.get("finished", 0) for run in found["runs"]}
    done = sum(known.values())
    if not found["runs"]:
        return ""
    lost = f" and {done} finished with it" if done else ""
    return f"the run in hand is lost{lost}; its experiment begins again with run"


def read_candidate(file: Path) -> str:
    """A train.py from anywhere, or LabError."""
    try:
        if file.stat().st_size > LARGEST_FILE_BYTES:
            raise LabError(f"{file} is larger than 1 MB. Next: shorten it")
        return file.read_bytes().decode()
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LabError(f"{file} is not UTF-8 text. Next: save it as such") from None


def move_ledger_aside(path: Path) -> None:
    """Move a ledger out of the way, without losing it."""
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.replace(path.with_name(f"{path.name}.before-rebuild{suffix}"))
