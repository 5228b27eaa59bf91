"""Tables of the ledger, and how older ledgers are brought up to date."""

import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from autoresearch.errors import LabError
from autoresearch.records import hash_chain
from autoresearch.records.row_query import ExactFloatList

FILL_OUTCOME = """
    update experiment set outcome =
        case when decision = 'discard' and why like 'unresolved%' then 'unresolved'
             else decision end
"""
MIGRATIONS = (
    """
    create table session (
        id         integer primary key,
        started_at real not null,
        tool       text not null,
        options    text not null check (json_valid(options))
    ) strict;
    create table series (
        hash  text primary key,
        facts text not null check (json_valid(facts)),
        seed  integer not null
    ) strict;
    create table source (
        blob text primary key,
        text blob not null
    ) strict;
    create table experiment (
        number      integer primary key,
        title       text not null,
        reason      text not null,
        author      text not null,
        parent      text not null,
        blob        text not null references source(blob),
        code        text not null,
        program     text not null,
        proposed_at real not null,
        evidence    text not null default 'measured'
                    check (evidence in ('measured', 'claimed')),
        sequence    integer unique,
        session     integer references session(id),
        series      text references series(hash),
        decision    text check (decision in ('keep', 'discard', 'failed')),
        why         text,
        kind        text check ((kind is null) = (decision is not 'failed')),
        value       real,
        delta       real,
        against     integer,
        decided_at  real,
        log         text,
        commit_name text,
        in_git      integer not null default 0,
        check ((decision is null) = (sequence is null)),
        check ((decision is null) = (decided_at is null)),
        check (case decision when 'keep' then value is not null
                             when 'discard' then value is not null
                             else value is null end),
        check (delta is null or value is not null)
    ) strict;
    create table run (
        id                 integer primary key,
        experiment         integer not null references experiment(number),
        series             text not null references series(hash),
        seed               integer not null,
        value              real not null,
        error              real not null,
        seconds            real not null,
        startup_seconds    real not null,
        evaluation_seconds real not null,
        memory_gb          real not null,
        facts              text not null check (json_valid(facts)),
        log                text not null
    ) strict;
    create index experiment_code on experiment(code, parent);
    create index experiment_blob on experiment(blob);
    create index experiment_undecided on experiment(number) where sequence is null;
    create index experiment_not_in_git on experiment(number) where in_git = 0;
    create index experiment_decision on experiment(decision, series, sequence);
    create index run_experiment on run(experiment);
    """,
    hash_chain.CHAIN_TABLE,
    # What was asked of whoever proposes, answered or not. NULL dollars or tokens: not
    # known, never 0. An answer that became an experiment has its parent and its blob.
    """
    create table asking (
        id         integer primary key,
        author     text not null,
        asked_at   real not null,
        seconds    real not null,
        dollars    real check (dollars >= 0),
        tokens_in  integer,
        tokens_out integer,
        outcome    text not null,
        parent     text not null,
        blob       text not null,
        transcript text not null
    ) strict;
    create index asking_blob on asking(blob, parent);
    """,
    # Runs added to decided experiments, the sealed holdout, curves, runs ended early,
    # champions taken back. SQLite cannot loosen a check, hence the copy.
    """
    create table experiment_now (
        number      integer primary key,
        title       text not null,
        reason      text not null,
        author      text not null,
        parent      text not null,
        blob        text not null references source(blob),
        code        text not null,
        program     text not null,
        proposed_at real not null,
        evidence    text not null default 'measured'
                    check (evidence in ('measured', 'claimed')),
        sequence    integer unique,
        session     integer references session(id),
        series      text references series(hash),
        decision    text check (decision in ('keep', 'discard', 'failed')),
        why         text,
        kind        text,
        value       real,
        delta       real,
        against     integer,
        decided_at  real,
        log         text,
        commit_name text,
        in_git      integer not null default 0,
        ended_at_share real check (ended_at_share between 0 and 1),
        check ((decision is null) = (sequence is null)),
        check ((decision is null) = (decided_at is null)),
        check ((kind is null) =
               (decision is not 'failed' and ended_at_share is null)),
        check ((value is null) =
               (decision is null or decision = 'failed' or kind is not null)),
        check (ended_at_share is null or decision = 'discard'),
        check (delta is null or value is not null)
    ) strict;
    insert into experiment_now select *, null from experiment;
    drop table experiment;
    alter table experiment_now rename to experiment;
    create index experiment_code on experiment(code, parent);
    create index experiment_blob on experiment(blob);
    create index experiment_undecided on experiment(number) where sequence is null;
    create index experiment_not_in_git on experiment(number) where in_git = 0;
    create index experiment_decision on experiment(decision, series, sequence);
    alter table run add column ended_at real;
    alter table run add column occasion text not null default 'verdict'
        check (occasion in ('verdict', 'champion', 'replicate'));
    alter table run add column holdout real;
    alter table run add column curve text check (curve is null or json_valid(curve));
    alter table run add column schedule integer not null default 0;
    alter table run add column spared text check (spared is null or json_valid(spared));
    create table taken_back (
        experiment  integer primary key references experiment(number),
        instead     integer not null references experiment(number),
        series      text not null references series(hash),
        why         text not null,
        at          real not null,
        commit_name text not null,
        in_git      integer not null default 0
    ) strict;
    create table start (
        series text primary key references series(hash),
        blob   text not null references source(blob)
    ) strict;
    """,
    hash_chain.WIDENED_CHAIN_TABLE,
    # How the GPU was during a run. NULL: nobody looked, or there is none.
    """
    alter table run add column health text check (health is null or json_valid(health));
    """,
    # The decision in four words. `decision` keeps its three, and so do its digests.
    """
    alter table experiment add column outcome text
        check (outcome in ('keep', 'discard', 'unresolved', 'failed'));
    update experiment set outcome =
        case when decision = 'discard' and why like 'unresolved%' then 'unresolved'
             else decision end;
    """,
)


def open_database(path: Path) -> sqlite3.Connection:
    """Open a ledger and bring its tables up to date, or LabError if it is damaged."""
    try:
        db = sqlite3.connect(
            path, isolation_level=None, timeout=30, check_same_thread=False
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


def enable_write_ahead_log(db: sqlite3.Connection, patience: float = 30.0) -> None:
    """Switch to the write-ahead log; OperationalError if others hold the file too long.

    SQLite does not wait for a lock here, however long its timeout: where two open a
    fresh file at once, one is told at once that it is locked.
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
    """What to say of a ledger that is not whole any more."""
    return LabError(
        f"{path} cannot be read ({how}). "
        "Next: autoresearch rebuild   (makes it anew from git)"
    )


def apply_migration(db: sqlite3.Connection, version: int) -> None:
    """One migration, inside a transaction: `executescript` would end that first."""
    for statement in split_statements(MIGRATIONS[version]):
        db.execute(statement)
    db.execute(f"pragma user_version = {version + 1}")
    if MIGRATIONS[version] is hash_chain.CHAIN_TABLE:
        hash_chain.chain_existing_rows(db)  # what an older version wrote, this once
    if broken := db.execute("pragma foreign_key_check").fetchone():
        raise sqlite3.DatabaseError(f"a reference of {broken[0]} is broken")


def split_statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one."""
    whole = ""
    for part in script.split(";"):
        whole += f"{part};"
        if sqlite3.complete_statement(whole):
            yield whole
            whole = ""


def migrate(db: sqlite3.Connection) -> None:
    """Run the migrations this ledger has not seen, each with the note that it ran."""
    while (version := hash_chain.read_format_version(db)) < len(MIGRATIONS):
        db.execute("begin immediate")
        try:
            if (
                hash_chain.read_format_version(db) == version
            ):  # else another process was faster
                apply_migration(db, version)
            db.execute("commit")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("rollback")
            raise
    if version > len(MIGRATIONS):
        raise LabError(
            f"this ledger was written by a newer AutoResearch (format {version}, "
            f"this one knows {len(MIGRATIONS)}). Next: upgrade autoresearch"
        )


def insert_source(db: sqlite3.Connection, blob: str, text: str) -> None:
    """Store a text under git's name for it, once."""
    packed = zlib.compress(text.encode())
    db.execute("insert or ignore into source values (?, ?)", (blob, packed))


def decompress_source(packed: bytes) -> str:
    return zlib.decompress(packed).decode()
