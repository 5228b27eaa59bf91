"""Rebuild a lost ledger from the commits under refs/autoresearch.

Not covered: what git does not have (`NOT_IN_GIT`).
"""

import sqlite3
from itertools import zip_longest
from statistics import fmean

from autoresearch import git
from autoresearch.errors import LabError
from autoresearch.git import GitError, Repository
from autoresearch.lab import constraints
from autoresearch.lab.folder import Lab
from autoresearch.records import hash_chain
from autoresearch.records.commit_message import commit_from_message
from autoresearch.records.ledger import (
    Ledger,
    derive_series_seed,
)
from autoresearch.records.schema import FILL_OUTCOME, insert_source

# What a rebuild cannot restore, as shown to the user.
NOT_IN_GIT = (
    "times, memory and learning curves of runs, the holdout, what replicate ran, what "
    "models were asked, and proposals that were refused or repeated"
)


def rebuild_ledger(lab: Lab, ledger: Ledger) -> int:
    """Fill an empty ledger from refs/autoresearch; returns the count of experiments.

    Raises LabError if there are no such refs or one is not a verdict's commit.
    """
    repository = Repository(lab.folder)
    entries = repository.list_verdict_commits()
    if not entries:
        raise LabError(
            f"{lab.folder} has no refs/autoresearch/*. Next: git fetch origin "
            "'refs/autoresearch/*:refs/autoresearch/*'"
        )
    with ledger.transaction() as db:
        for sequence, (number, commit, message) in enumerate(entries, 1):
            trailers = git.parse_trailers(message)
            try:
                restore_experiment(
                    ledger, repository, number, commit, message, trailers, sequence
                )
            except (KeyError, ValueError, GitError) as error:
                raise LabError(
                    f"refs/autoresearch/{number} is not a verdict's commit ({error}). "
                    f"Next: git update-ref -d refs/autoresearch/{number}"
                ) from None
        for _, _, message in entries:
            restore_champion_runs(db, git.parse_trailers(message))
        for number, commit, message in repository.list_reverted_commits():
            restore_reversion(ledger, repository, number, commit, message)
        db.execute("update experiment set in_git = 1")
        db.execute(FILL_OUTCOME)  # a trailer has it in the reason only
        hash_chain.chain_existing_rows(db)
    return len(entries)


def restore_champion_runs(db: sqlite3.Connection, trailers: dict[str, str]) -> None:
    """Champion runs that were made for another experiment's verdict."""
    number, _, values = trailers.get("Remeasured", "").partition(" at ")
    for text in values.split():
        value, _, seed = text.partition("/")
        run = (float(value), int(seed or 0), "champion")
        insert_run(db, int(number), trailers["Series"], *run)


def restore_reversion(
    ledger: Ledger, repository: Repository, number: int, commit: str, message: str
) -> None:
    """A reversion, from its commit."""
    trailers = git.parse_trailers(message)
    instead, why = trailers["Instead"].partition(" at ")[0], trailers["Verdict"]
    at = float(repository.run_git("log", "-1", "--format=%at", commit))
    ledger.db.execute(
        "insert into taken_back values (?, ?, ?, ?, ?, ?, 1)",
        (
            *(number, int(instead), trailers["Series"]),
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
    """A run of which only score and seed are known."""
    db.execute(
        "insert into run (experiment, series, seed, value, error, seconds,"
        " startup_seconds, evaluation_seconds, memory_gb, facts, log, occasion)"
        " values (?, ?, ?, ?, 0, 0, 0, 0, 0, '[]', '', ?)",
        (number, series, seed, value, occasion),
    )


def restore_experiment(
    ledger: Ledger,
    repository: Repository,
    number: int,
    commit: str,
    message: str,
    trailers: dict[str, str],
    sequence: int,
) -> None:
    """One experiment and its runs, from its commit.

    Raises KeyError or ValueError if the commit is not a verdict's.
    """
    decision, _, why = trailers["Verdict"].partition(": ")
    kind = why.partition(": ")[0] if decision == "failed" else None
    share = float(trailers["Ended-at"]) if "Ended-at" in trailers else None
    if share is not None:
        kind = "ended early"
    values = [float(value) for value in trailers.get("Score", "").split()]
    series, author, blob = (trailers[key] for key in ("Series", "Proposed-by", "Ran"))
    source = read_source(repository, commit, blob)
    rival, _, rival_mean = trailers.get("Against", "").partition(" at ")
    against = int(rival) if rival else None
    at = float(repository.run_git("log", "-1", "--format=%at", commit))
    entry = commit_from_message(message, author, at)
    title = entry.title.removeprefix("[AutoResearch] ").rpartition(" | ")[0]
    db = ledger.db
    db.execute(
        "insert or ignore into series values (?, '{}', ?)",
        (series, derive_series_seed(series)),
    )
    insert_source(db, blob, source)
    parent = find_parent_blob(db, repository, commit, against, trailers)
    code, program = constraints.fingerprint_code(source), trailers.get("Program", "")
    score = fmean(values) if values else None
    delta = None if score is None else parse_delta(trailers, score, rival_mean)
    db.execute(
        "insert into experiment (number, title, reason, author, parent, blob, code,"
        " program, proposed_at, sequence, series, decision, why, kind, value, delta,"
        " against, decided_at, commit_name, ended_at_share)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(number, title, entry.body, author, parent, blob, code, program),
            *(at, sequence, series, decision, why, kind, score, delta, against),
            *(at, commit, share),
        ),
    )
    seeds = [int(seed) for seed in trailers.get("Seeds", "").split()]
    for value, seed in zip_longest(values, seeds[: len(values)], fillvalue=0):
        insert_run(db, number, series, value, seed, "verdict")


def read_source(repository: Repository, commit: str, blob: str) -> str:
    """The train.py of a commit, which has to be this blob; raises ValueError."""
    found = repository.read_file_at(commit, "train.py")
    if found is None or found[0] != blob:
        raise ValueError("its train.py is not the one that it says ran")
    return found[1].decode()


def parse_delta(trailers: dict[str, str], score: float, rival: str) -> float | None:
    """The delta of a verdict; commits of older versions give the rival's mean only."""
    if "Delta" in trailers:
        return float(trailers["Delta"])
    return score - float(rival) if rival else None


def find_parent_blob(
    db: sqlite3.Connection,
    repository: Repository,
    commit: str,
    against: int | None,
    trailers: dict[str, str],
) -> str:
    """Blob of the train.py an experiment started from, stored; "" for a baseline.

    It is either a user's commit or the newest of the experiment's unproven ancestors.
    """
    if ancestors := trailers.get("On-the-way", "").split():
        query = "select blob from experiment where number = ?"
        if (known := db.execute(query, (int(ancestors[-1]),)).fetchone()) is not None:
            return str(known[0])
    found = repository.read_file_at(f"{commit}^", "train.py")
    if against is None or found is None:
        return ""
    insert_source(db, found[0], found[1].decode(errors="replace"))
    return found[0]
