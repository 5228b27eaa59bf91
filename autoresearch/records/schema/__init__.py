"""Tables of the ledger, and how an older ledger is brought up to date.

Each `NNNN_name.sql` in this folder is one migration; a new ledger runs all of them. The
format version of a ledger (`pragma user_version`) is how many of them it has run, so a
file is never changed, renumbered or removed after a release.
"""

import sqlite3
import time
import zlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from autoresearch.errors import LabError
from autoresearch.records import hash_chain
from autoresearch.records.row_query import ExactFloatList

# What migration 7 fills `outcome` with; a ledger rebuilt from git needs it as well.
FILL_OUTCOME = """
    update experiment set outcome =
        case when decision = 'discard' and why like 'unresolved%' then 'unresolved'
             else decision end
"""
BUSY_SECONDS = 30.0  # to wait for another process that holds the file


@cache
def load_migrations() -> tuple[str, ...]:
    """The SQL of every migration, in order."""
    files = (
        file
        for file in resources.files(__name__).iterdir()
        if file.name.endswith(".sql")
    )
    ordered = sorted(files, key=lambda file: file.name)
    return tuple(file.read_text(encoding="utf-8") for file in ordered)


def open_database(path: Path) -> sqlite3.Connection:
    """Open a ledger and bring its tables up to date.

    Raises LabError if the file is damaged, locked, not writable, or of a newer format.
    """
    try:
        db = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
        )
        db.create_aggregate("reals", 1, ExactFloatList)
        enable_write_ahead_log(db)
        db.execute("pragma synchronous = full")
        migrate(db)  # may replace tables that others refer to
        db.execute("pragma foreign_keys = on")
    except sqlite3.OperationalError as error:
        raise LabError(
            f"{path} cannot be opened ({error}). Next: check that you may write to "
            "that folder and that no other program holds the file"
        ) from None
    except sqlite3.DatabaseError as error:
        raise damaged_ledger_error(path, str(error)) from None
    return db


def enable_write_ahead_log(
    db: sqlite3.Connection, patience: float = BUSY_SECONDS
) -> None:
    """Switch to write-ahead logging, retrying for `patience` seconds.

    SQLite does not apply its busy timeout to this statement: of two processes that
    open a fresh file at the same time, one gets SQLITE_BUSY at once. Raises
    OperationalError when the file stays locked.
    """
    until = time.monotonic() + patience
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode != sqlite3.SQLITE_BUSY
                or time.monotonic() > until
            ):
                raise
        time.sleep(0.01)


def damaged_ledger_error(path: Path, how: str) -> LabError:
    """The error for a ledger file that SQLite cannot read."""
    return LabError(
        f"{path} cannot be read ({how}). "
        "Next: autoresearch rebuild   (restores it from git)"
    )


def migrate(db: sqlite3.Connection) -> None:
    """Run the migrations that this ledger has not seen, each in a transaction.

    Raises LabError if the ledger has a newer format than this version knows.
    """
    newest = len(load_migrations())
    while (version := hash_chain.read_format_version(db)) < newest:
        db.execute("begin immediate")
        try:
            # Read again: another process may have run it in the meantime.
            if hash_chain.read_format_version(db) == version:
                apply_migration(db, version)
            db.execute("commit")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("rollback")
            raise
    if version > newest:
        raise LabError(
            f"this ledger was written by a newer AutoResearch (format {version}, "
            f"this one knows {newest}). Next: upgrade autoresearch"
        )


def apply_migration(db: sqlite3.Connection, version: int) -> None:
    """Bring a ledger of this format to the next one, inside an open transaction.

    Not with `executescript`, which would commit that transaction first.
    """
    for statement in split_statements(load_migrations()[version]):
        db.execute(statement)
    db.execute(f"pragma user_version = {version + 1}")
    if version + 1 == hash_chain.FIRST_CHAINED_FORMAT:
        hash_chain.chain_existing_rows(db)  # rows of a version without a chain
    if broken := db.execute("pragma foreign_key_check").fetchone():
        raise sqlite3.DatabaseError(f"a reference of {broken[0]} is broken")


def split_statements(script: str) -> Iterator[str]:
    """Split an SQL script into statements."""
    whole = ""
    for part in script.split(";"):
        whole += f"{part};"
        if sqlite3.complete_statement(whole):
            yield whole
            whole = ""


def insert_source(db: sqlite3.Connection, blob: str, text: str) -> None:
    """Store a text under its git blob id, once."""
    packed = zlib.compress(text.encode())
    db.execute("insert or ignore into source values (?, ?)", (blob, packed))


def decompress_source(packed: bytes) -> str:
    """A stored text."""
    return zlib.decompress(packed).decode()
