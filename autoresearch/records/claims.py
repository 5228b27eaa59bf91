"""Imported claims: experiments of a foreign results.tsv, written into the ledger.

Promises: a claim has the evidence `claimed` and a series of its file's own, so it is
never champion and no policy or proposer sees it; the same file is imported once, in one
transaction; the hash chain stays intact.

Not covered: the train.py of a claim, which the file does not have (a note is stored in
its place); git, which never gets a claim.
"""

import json
import time
from dataclasses import dataclass

from autoresearch.errors import LabError
from autoresearch.experiment import Decision, Kind
from autoresearch.git import compute_blob_id
from autoresearch.records import hash_chain
from autoresearch.records.ledger import Ledger
from autoresearch.records.schema import insert_source


@dataclass(frozen=True, slots=True)
class ClaimedResult:
    """One line of a foreign results.tsv."""

    line: int
    commit: str
    value: float | None  # None: it crashed
    memory_gb: float
    decision: Decision
    title: str


@dataclass(frozen=True, slots=True)
class ClaimedSeries:
    """The claims of one file."""

    name: str  # of the file
    digest: str  # SHA-256 of its bytes
    metric: str
    claims: tuple[ClaimedResult, ...]

    @property
    def hash(self) -> str:
        """The series its experiments are in."""
        return f"claimed:{self.digest[:8]}"


def insert_claims(ledger: Ledger, series: ClaimedSeries) -> list[int]:
    """Write claims into the ledger and return the numbers of their experiments.

    The caller holds the lab's lock. Raises LabError if the file was imported before.
    """
    with ledger.transaction() as db:
        known = db.execute("select 1 from series where hash = ?", (series.hash,))
        if known.fetchone():
            raise LabError(
                f"{series.name} was imported before, as series {series.hash}. "
                f"Next: autoresearch replay --series {series.hash}"
            )
        facts = {
            "file": series.name,
            "sha256": series.digest,
            "metric": series.metric,
        }
        db.execute(
            "insert into series values (?, ?, 0)", (series.hash, json.dumps(facts))
        )
        (last, sequence) = db.execute(
            "select max(number), max(sequence) from experiment"
        ).fetchone()
        number = max(last or 0, 0)
        best: tuple[int, float] | None = None  # the last keep: (experiment, its score)
        numbers: list[int] = []
        for place, claim in enumerate(series.claims, 1):
            insert_claim(
                ledger, series, claim, number + place, (sequence or 0) + place, best
            )
            numbers.append(number + place)
            if claim.decision == "keep" and claim.value is not None:
                best = number + place, claim.value
    return numbers


def insert_claim(
    ledger: Ledger,
    series: ClaimedSeries,
    claim: ClaimedResult,
    number: int,
    sequence: int,
    best: tuple[int, float] | None,
) -> None:
    """Write one claim as an experiment and, where it has a score, a run."""
    db, now = ledger.db, time.time()
    where = f"{series.name} line {claim.line}, commit {claim.commit or 'unknown'}"
    note = f"# The train.py of {where} is not here.\n# sha256 {series.digest}\n"
    blob = compute_blob_id(note)
    insert_source(db, blob, note)
    kind: Kind | None = "crash" if claim.decision == "failed" else None
    delta = None
    if best is not None and claim.value is not None:
        delta = claim.value - best[1]
    db.execute(
        "insert into experiment (number, title, reason, author, parent, blob, code,"
        " program, proposed_at, evidence, sequence, series, decision, why, kind, value,"
        " delta, against, decided_at, in_git) values"
        " (?, ?, '', ?, '', ?, ?, '', ?, 'claimed', ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
        (
            *(number, claim.title, f"import:{series.name}", blob, blob, now, sequence),
            *(series.hash, claim.decision, f"claimed: {where}", kind, claim.value),
            *(delta, None if best is None else best[0], now),
        ),
    )
    if claim.value is not None:
        run = db.execute(
            "insert into run (experiment, series, seed, value, error, seconds,"
            " startup_seconds, evaluation_seconds, memory_gb, facts, log)"
            " values (?, ?, 0, ?, 0, 0, 0, 0, ?, '[]', '')",
            (number, series.hash, claim.value, claim.memory_gb),
        )
        assert run.lastrowid is not None
        hash_chain.append_entry(db, "run", run.lastrowid)
    hash_chain.append_entry(db, "verdict", number)
