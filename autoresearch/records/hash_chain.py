"""A hash chain over the ledger's rows, which makes later edits evident.

Every run, verdict, commit name and reversion adds an entry in the transaction that
writes it. An entry holds a digest of the row and a link: the hash of the link before,
the kind, the row's number and the digest. `find_chain_problems` reports rows that were
changed, removed, added or swapped without recomputing the chain.

Not covered: tamper-evident is not tamper-proof. A process that may write the file can
recompute the whole chain. Commits that were pushed hold earlier links (the trailer
`Chain`), and those it cannot change.
"""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator

FIRST_CHAINED_FORMAT = 2  # of the ledger; older rows are chained when it gets there
REVERSION_FORMAT = 5  # of the ledger, from which on it has reversions
GENESIS_LINK = "0" * 64  # the link before the first
# Columns are named one by one: one that a later format adds changes no old digest.
# The commit name is chained apart, because it may be set again.
VERDICT_QUERY = (
    "select number, title, reason, author, parent, blob, code, program, proposed_at,"
    " evidence, sequence, session, series, decision, why, kind, value, delta, against,"
    " decided_at, log from experiment where number = ? and sequence is not null"
)
RUN_QUERY = (
    "select id, experiment, series, seed, value, error, seconds, startup_seconds,"
    " evaluation_seconds, memory_gb, facts, log from run where id = ?"
)
# (format that added the columns, query). They are in the digest only where one of them
# differs from its default, so digests of older rows hold.
LATER_COLUMN_QUERIES = {
    "run": (
        (5, "select ended_at, occasion, holdout from run where id = ?"),
        (6, "select health from run where id = ?"),
    ),
    "verdict": (
        (5, "select ended_at_share from experiment where number = ?"),
        # Older ledgers have it in the reason only; NULL where the two agree.
        (
            7,
            "select nullif(outcome, case when decision = 'discard' and why like"
            " 'unresolved%' then 'unresolved' else decision end)"
            " from experiment where number = ?",
        ),
    ),
}
DEFAULT_VALUES = (None, "verdict")
REVERSION_QUERY = (
    "select experiment, instead, series, why, at, commit_name from taken_back"
    " where experiment = ?"
)


def append_entry(
    db: sqlite3.Connection, kind: str, ref: int, *, adopted: bool = False
) -> None:
    """Add an entry for a row, in the transaction that wrote the row.

    `adopted`: the row is older than the chain.
    """
    digest = compute_row_digest(db, kind, ref)
    assert digest is not None, f"no {kind} {ref} to chain"
    link = compute_link(load_head_link(db), kind, ref, digest)
    db.execute(
        "insert into chain (kind, ref, digest, link, adopted) values (?, ?, ?, ?, ?)",
        (kind, ref, digest, link, adopted),
    )


def chain_existing_rows(db: sqlite3.Connection) -> None:
    """Chain rows written by a version without a chain, or rebuilt from git. Once."""
    for (number,) in db.execute(
        "select number from experiment where sequence is not null order by sequence"
    ).fetchall():
        query = "select id from run where experiment = ? order by id"
        for (run,) in db.execute(query, (number,)).fetchall():
            append_entry(db, "run", run, adopted=True)
        append_entry(db, "verdict", number, adopted=True)
        if compute_row_digest(db, "commit", number) is not None:
            append_entry(db, "commit", number, adopted=True)
    if read_format_version(db) >= REVERSION_FORMAT:
        query = "select experiment from taken_back order by at, experiment"
        for (number,) in db.execute(query).fetchall():
            append_entry(db, "taken back", number, adopted=True)


def load_head_link(db: sqlite3.Connection) -> str:
    """The newest link of the chain."""
    found = db.execute("select link from chain order by position desc limit 1")
    row = found.fetchone()
    return str(row[0]) if row else GENESIS_LINK


def compute_link(before: str, kind: str, ref: int, digest: str) -> str:
    """The link of an entry that follows another."""
    return hashlib.sha256(f"{before} {kind} {ref} {digest}".encode()).hexdigest()


def compute_row_digest(db: sqlite3.Connection, kind: str, ref: int) -> str | None:
    """SHA-256 of a row as it is now; None when there is no such row."""
    if kind == "run":
        row = db.execute(RUN_QUERY, (ref,)).fetchone()
    elif kind == "verdict":
        row = db.execute(VERDICT_QUERY, (ref,)).fetchone()
    elif kind == "taken back":
        row = db.execute(REVERSION_QUERY, (ref,)).fetchone()
    else:
        query = "select commit_name from experiment where number = ?"
        row = db.execute(query, (ref,)).fetchone()
        row = row if row and row[0] is not None else None
    if row is None:
        return None
    columns = [*row, *load_later_columns(db, kind, ref)]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def load_later_columns(db: sqlite3.Connection, kind: str, ref: int) -> list[object]:
    """Columns that older formats lack, where any of them is not at its default."""
    found: list[object] = []
    for since, query in LATER_COLUMN_QUERIES.get(kind, ()):
        if read_format_version(db) >= since:
            row = db.execute(query, (ref,)).fetchone()
            found += () if all(value in DEFAULT_VALUES for value in row) else row
    return found


def read_format_version(db: sqlite3.Connection) -> int:
    """How many migrations a ledger has run."""
    return int(db.execute("pragma user_version").fetchone()[0])


def find_chain_problems(db: sqlite3.Connection) -> Iterator[str]:
    """One sentence for every row or entry that is not as it was written."""
    before, last = GENESIS_LINK, 0
    newest: dict[tuple[str, int], str] = {}
    query = "select position, kind, ref, digest, link from chain order by position"
    for position, kind, ref, digest, link in db.execute(query).fetchall():
        if position != last + 1:
            yield f"entries {last + 1} to {position - 1} of the chain are gone"
        if compute_link(before, kind, ref, digest) != link:
            yield f"entry {position} of the chain ({kind} {ref}) does not follow"
        if kind in ("run", "verdict") and (kind, ref) in newest:
            yield f"{kind} {ref} is twice in the chain"
        newest[kind, ref] = digest
        before, last = link, position
    for (kind, ref), digest in newest.items():
        now = compute_row_digest(db, kind, ref)
        if now is None:
            yield f"{describe_entry(kind, ref)} is gone from the ledger"
        elif now != digest:
            yield f"{describe_entry(kind, ref)} was changed after it was written"
    for kind, table in (
        ("run", "select id from run order by id"),
        ("verdict", "select number from experiment where sequence is not null"),
        ("commit", "select number from experiment where commit_name is not null"),
        ("taken back", "select experiment from taken_back"),
    ):
        for (ref,) in db.execute(table):
            if (kind, ref) not in newest:
                what = describe_entry(kind, ref)
                yield f"{what} is not in the chain (the row was added afterwards)"
    yield from find_altered_sources(db)


def find_altered_sources(db: sqlite3.Connection) -> Iterator[str]:
    """Stored texts that do not have the git blob id they are stored under."""
    for blob, packed in db.execute("select blob, text from source"):
        try:
            body = zlib.decompress(packed)
        except zlib.error:
            yield f"the text of {blob[:12]} cannot be read"
            continue
        whole = f"blob {len(body)}\0".encode() + body
        if hashlib.sha1(whole, usedforsecurity=False).hexdigest() != blob:
            yield f"the text of {blob[:12]} does not have that blob id"


def describe_entry(kind: str, ref: int) -> str:
    """Name a row for a message."""
    words = {
        "run": "run",
        "verdict": "experiment",
        "commit": "the commit of experiment",
        "taken back": "the reversion of experiment",
    }
    return f"{words[kind]} {ref}"


def load_links_before(db: sqlite3.Connection, number: int) -> set[str]:
    """Every link before the entry of an experiment's verdict."""
    found = db.execute(
        "select link from chain where position < (select min(position) from chain"
        " where kind = 'verdict' and ref = ?)",
        (number,),
    )
    return {GENESIS_LINK, *(link for (link,) in found)}


def count_entries(db: sqlite3.Connection) -> tuple[int, int]:
    """(entries, adopted entries) of the chain."""
    query = "select count(*), total(adopted) from chain"
    (entries, adopted) = db.execute(query).fetchone()
    return int(entries), int(adopted)
