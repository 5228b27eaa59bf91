"""Fill an empty ledger from the commits under refs/autoresearch."""

import sqlite3
from itertools import zip_longest

from autoresearch import git
from autoresearch.errors import LabError
from autoresearch.git import GitError, Repository
from autoresearch.lab import constraints
from autoresearch.lab.folder import Lab
from autoresearch.records import hash_chain
from autoresearch.records.commit_message import commit_from_message, compute_mean
from autoresearch.records.ledger import (
    Ledger,
    derive_series_seed,
)
from autoresearch.records.schema import FILL_OUTCOME, insert_source

# What `rebuild` says of itself.
NOT_IN_GIT = (
    "times, memory and learning curves of runs, the holdout, what replicate ran, what "
    "models were asked, and proposals that were refused or repeated"
)


# -- the ledger from git ---------------------------------------------------------------


def rebuild_ledger(lab: Lab, ledger: Ledger) -> int:
    """Fill an empty ledger from refs/autoresearch; how many experiments came back.

    What is not in git does not come back: `NOT_IN_GIT`.
    """
    book = Repository(lab.folder)
    entries = book.list_verdict_commits()
    if not entries:
        raise LabError(
            f"{lab.folder} has no refs/autoresearch/*. Next: git fetch origin "
            "'refs/autoresearch/*:refs/autoresearch/*'"
        )
    with ledger.transaction() as db:
        for sequence, (number, commit, message) in enumerate(entries, 1):
            tell = git.parse_trailers(message)
            try:
                restore_experiment(
                    ledger, book, number, commit, message, tell, sequence
                )
            except (KeyError, ValueError, GitError) as error:
                raise LabError(
                    f"refs/autoresearch/{number} is no verdict of ours ({error}). "
                    f"Next: git update-ref -d refs/autoresearch/{number}"
                ) from None
        for _, _, message in entries:
            restore_champion_runs(db, git.parse_trailers(message))
        for number, commit, message in book.list_reverted_commits():
            restore_reversion(ledger, book, number, commit, message)
        db.execute("update experiment set in_git = 1")
        db.execute(FILL_OUTCOME)  # a commit says it in the reason
        hash_chain.chain_existing_rows(db)
    return len(entries)


def restore_champion_runs(db: sqlite3.Connection, tell: dict[str, str]) -> None:
    """The champion's runs that were made for the sake of another experiment."""
    number, _, values = tell.get("Remeasured", "").partition(" at ")
    for told in values.split():
        value, _, seed = told.partition("/")
        run = (float(value), int(seed or 0), "champion")
        insert_run(db, int(number), tell["Series"], *run)


def restore_reversion(
    ledger: Ledger, book: Repository, number: int, commit: str, message: str
) -> None:
    """A champion that was taken back."""
    tell = git.parse_trailers(message)
    instead, why = tell["Instead"].partition(" at ")[0], tell["Verdict"]
    at = float(book.run_git("log", "-1", "--format=%at", commit))
    ledger.db.execute(
        "insert into taken_back values (?, ?, ?, ?, ?, ?, 1)",
        (
            *(number, int(instead), tell["Series"]),
            *(why.removeprefix("taken back: "), at, commit),
        ),
    )


def insert_run(
    db: sqlite3.Connection,
    number: int,
    series: str,
    value: float,
    seed: int,
    occasion: str,
) -> None:
    """A run of which git knows score and seed and no more."""
    db.execute(
        "insert into run (experiment, series, seed, value, error, seconds,"
        " startup_seconds, evaluation_seconds, memory_gb, facts, log, occasion)"
        " values (?, ?, ?, ?, 0, 0, 0, 0, 0, '[]', '', ?)",
        (number, series, seed, value, occasion),
    )


def restore_experiment(
    ledger: Ledger,
    book: Repository,
    number: int,
    commit: str,
    message: str,
    tell: dict[str, str],
    sequence: int,
) -> None:
    """One experiment and its runs, from what its commit says."""
    decision, _, why = tell["Verdict"].partition(": ")
    what = why.partition(": ")[0] if decision == "failed" else None
    share = float(tell["Ended-at"]) if "Ended-at" in tell else None
    if share is not None:
        what = "ended early"
    values = [float(value) for value in tell.get("Score", "").split()]
    found = book.read_file_at(commit, "train.py")
    if found is None or found[0] != tell["Ran"]:
        raise ValueError("its train.py is not what it says ran")
    source = found[1].decode()
    rival = tell.get("Against", "").partition(" at ")
    against = int(rival[0]) if rival[0] else None
    at = float(book.run_git("log", "-1", "--format=%at", commit))
    entry = commit_from_message(message, tell["Proposed-by"], at)
    title = entry.title.removeprefix("[AutoResearch] ").rpartition(" | ")[0]
    db = ledger.db
    series = tell["Series"]
    db.execute(
        "insert or ignore into series values (?, '{}', ?)",
        (series, derive_series_seed(series)),
    )
    insert_source(db, tell["Ran"], source)
    score = compute_mean(values) if values else None
    delta = None if score is None else parse_delta(tell, score, rival[2])
    db.execute(
        "insert into experiment (number, title, reason, author, parent, blob, code,"
        " program, proposed_at, sequence, series, decision, why, kind, value, delta,"
        " against, decided_at, commit_name, ended_at_share)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(number, title, entry.body, tell["Proposed-by"]),
            *(find_parent_blob(db, book, commit, against, tell), tell["Ran"]),
            *(
                constraints.fingerprint_code(source),
                tell.get("Program", ""),
                at,
                sequence,
            ),
            *(tell["Series"], decision, why, what, score, delta, against, at, commit),
            share,
        ),
    )
    seeds = [int(seed) for seed in tell.get("Seeds", "").split()]
    for value, seed in zip_longest(values, seeds[: len(values)], fillvalue=0):
        insert_run(db, number, tell["Series"], value, seed, "verdict")


def parse_delta(tell: dict[str, str], score: float, rival: str) -> float | None:
    """What a commit says it gained; older ones say it of means only."""
    if "Delta" in tell:
        return float(tell["Delta"])
    return score - float(rival) if rival else None


def find_parent_blob(
    db: sqlite3.Connection,
    book: Repository,
    commit: str,
    against: int | None,
    tell: dict[str, str],
) -> str:
    """The train.py an experiment started from, kept; "" for a baseline.

    It may be the human's own, committed between two verdicts; or the newest of the
    unproven that the experiment stands on.
    """
    if way := tell.get("On-the-way", "").split():
        query = "select blob from experiment where number = ?"
        if (known := db.execute(query, (int(way[-1]),)).fetchone()) is not None:
            return str(known[0])
    found = book.read_file_at(f"{commit}^", "train.py")
    if against is None or found is None:
        return ""
    insert_source(db, found[0], found[1].decode(errors="replace"))
    return found[0]
