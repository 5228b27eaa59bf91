"""The ledger: what was proposed, what ran, what was decided. SQLite; one writer.

Promises: a proposal is on record before anything runs, and ends in exactly one verdict;
a failed experiment has no metric (the database refuses one); a verdict and everything
that belongs to it are one transaction; a verdict is marked as unpublished until git has
it. results.tsv is a view, never a source.

`autoresearch verify-ledger` detects edits by hand, because rows are in a hash chain
(`hash_chain`). Reads that few callers need are in `queries`.

Not covered: an edit that recomputes the chain as well.
"""

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import fmean

from autoresearch import __version__
from autoresearch.experiment import (
    Champion,
    Failure,
    Occasion,
    Proposal,
    Row,
    RunRecord,
    Score,
    Scores,
    Verdict,
    status_from_decision,
)
from autoresearch.records import hash_chain
from autoresearch.records.row_query import (
    ROW_QUERY,
    UNPROVEN_ANCESTORS_QUERY,
    parse_number_list,
    rows_from_cursor,
)
from autoresearch.records.schema import (
    damaged_ledger_error,
    decompress_source,
    insert_source,
    open_database,
)
from autoresearch.stats import early_stopping

LEDGER_ONLY_KINDS = ("refused", "duplicate")  # nothing ran, so git need not know
END_OF_LEDGER = 1 << 62  # above every number and sequence


@dataclass(frozen=True, slots=True)
class ProposerCall:
    """One call to a proposer that costs time or money, and its outcome."""

    author: str
    asked_at: float
    seconds: float
    dollars: float | None  # None: unknown
    tokens_in: int | None  # None: unknown
    tokens_out: int | None
    outcome: str  # "proposed", "refused: ...", "limit until 03:10: ...", ...
    parent: str  # blob that a change was asked for
    blob: str  # of the train.py it returned; "" when there is none
    transcript: str  # name of a file under .autoresearch/asked


@dataclass(frozen=True, slots=True)
class Reversion:
    """A champion that was replaced by the one before it."""

    reverted_number: int
    restored_number: int
    why: str
    reverted_at: float
    commit: str
    is_in_git: bool


class Ledger:
    """Every proposal and verdict of a lab. Only the recorder writes verdicts."""

    def __init__(self, path: Path, *, lower_is_better: bool = True) -> None:
        self.path = path
        self.lower_is_better = lower_is_better
        self.series = ""  # the current one; set by `begin_session`
        self._session: int | None = None  # None: not begun; a reader never begins one
        self._rows: list[Row] = []
        self._last_sequence = 0
        self.db = open_database(path)

    # -- writing, in the order of an experiment ----------------------------------------

    def begin_session(
        self, series: str, facts: str, seed: int | None, options: str
    ) -> None:
        """Open a session in a series.

        A new series gets this seed, or one derived from its hash, so that a ledger
        rebuilt from git goes on with the same seeds. Raises LabError if the file is
        damaged.
        """
        self.require_intact()
        if seed is None:
            seed = derive_series_seed(series)
        with self.transaction() as db:
            self._session = db.execute(
                "insert into session (started_at, tool, options) values (?, ?, ?)",
                (time.time(), __version__, options),
            ).lastrowid
            db.execute(
                "insert into series values (?, ?, ?) on conflict do update"
                " set facts = excluded.facts where facts = '{}'",
                (series, facts, seed),
            )
        self.series = series

    def admit_proposal(self, proposal: Proposal, blob: str, code: str) -> Proposal:
        """Put a proposal on record and number it; one on record is returned as it is.

        blob: git's id of its train.py. code: fingerprint of its code.
        """
        if proposal.number is not None and self._has_experiment(proposal.number):
            return proposal
        with self.transaction() as db:
            number = proposal.number
            if number is None:
                (last,) = db.execute("select max(number) from experiment").fetchone()
                number = max(last or 0, 0) + 1
            insert_source(db, blob, proposal.source)
            db.execute(
                "insert into experiment (number, title, reason, author, parent, blob,"
                " code, program, proposed_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(number, proposal.title, proposal.reason, proposal.author),
                    *(proposal.parent, blob, code, proposal.program, time.time()),
                ),
            )
        return replace(proposal, number=number)

    def record_verdict(self, verdict: Verdict, *, commit: str | None, at: float) -> Row:
        """Record a verdict and its runs, and return its row.

        commit: of the verdict; None: it stays in the ledger only. at: seconds since
        1970.
        """
        failure = verdict.evidence if isinstance(verdict.evidence, Failure) else None
        value = fmean(verdict.values) if verdict.values else None
        against = verdict.against
        delta = verdict.delta
        if delta is None and value is not None and against is not None:
            delta = value - fmean(against.values)
        number = verdict.proposal.number
        status = status_from_decision(verdict.decision)
        with self.transaction() as db:
            if not isinstance(verdict.evidence, Failure):
                for score in verdict.evidence:
                    self._insert_run(db, score, "verdict")
            updated = db.execute(
                "update experiment set decision = ?, outcome = ?, why = ?, kind = ?,"
                " value = ?,"
                " delta = ?, against = ?, decided_at = ?, session = ?, series = ?,"
                " log = ?, ended_at_share = ?, commit_name = ?, in_git = ?, sequence ="
                " (select coalesce(max(sequence), 0) + 1 from experiment)"
                " where number = ? and decision is null",
                (
                    *(status, verdict.decision, verdict.reason),
                    failure and failure.kind,
                    *(value, delta, against and against.number, at, self._session),
                    *(self.series, failure and failure.log and failure.log.name),
                    *(failure and failure.share, commit, commit is None, number),
                ),
            )
            assert updated.rowcount == 1, f"experiment {number} was decided twice"
            assert number is not None
            hash_chain.append_entry(db, "verdict", number)
            if commit is not None:
                hash_chain.append_entry(db, "commit", number)
        return self.load_rows()[-1]

    def record_runs(self, scores: Scores, occasion: Occasion) -> None:
        """Add runs to a decided experiment: to the champion, or as replicates."""
        with self.transaction() as db:
            for score in scores:
                self._insert_run(db, score, occasion)
        for score in scores:
            self._reload_row(score.run.candidate.proposal.number)

    def record_reversion(
        self, former: Champion, champion: Champion, why: str, commit: str, at: float
    ) -> None:
        """Record that `champion` was replaced by `former`, the champion before it."""
        with self.transaction() as db:
            db.execute(
                "insert into taken_back values (?, ?, ?, ?, ?, ?, 0)",
                (champion.number, former.number, self.series, why, at, commit),
            )
            hash_chain.append_entry(db, "taken back", champion.number)

    def set_start(self, blob: str) -> None:
        """Set the blob that the next proposals start from, for proposers anywhere."""
        known = self.db.execute(
            "select blob from start where series = ?", (self.series,)
        )
        if known.fetchone() == (blob,):
            return
        with self.transaction() as db:
            db.execute(
                "insert or replace into start values (?, ?)", (self.series, blob)
            )

    def rename_reversion_commit(self, number: int, commit: str) -> None:
        """Set the commit of a reversion, which had to be created again."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set commit_name = ? where experiment = ?",
                (commit, number),
            )
            hash_chain.append_entry(db, "taken back", number)

    def mark_reversion_published(self, number: int) -> None:
        """Note that git has the commit of a reversion."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set in_git = 1 where experiment = ?", (number,)
            )

    def rename_verdict_commit(self, number: int, commit: str) -> None:
        """Set the commit of a keep, which was created again on top of a user's."""
        with self.transaction() as db:
            db.execute(
                "update experiment set commit_name = ? where number = ?",
                (commit, number),
            )
            hash_chain.append_entry(db, "commit", number)
        self._clear_row_cache()

    def mark_verdict_published(self, number: int) -> None:
        """Note that git has the commit of a verdict."""
        with self.transaction() as db:
            db.execute("update experiment set in_git = 1 where number = ?", (number,))

    def record_proposer_call(self, call: ProposerCall) -> None:
        """Record a call to a proposer, its cost and its outcome."""
        with self.transaction() as db:
            db.execute(
                "insert into asking (author, asked_at, seconds, dollars, tokens_in,"
                " tokens_out, outcome, parent, blob, transcript)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                astuple(call),
            )

    # -- reading -----------------------------------------------------------------------

    def load_rows(self) -> Sequence[Row]:
        """Every decided experiment, in the order of decision; a cache, not to change.

        Imported claims are left out, so no policy and no proposer sees them.
        """
        query = (
            f"{ROW_QUERY} where e.sequence > ? and e.evidence = 'measured'"
            " group by e.number order by e.sequence"
        )
        cursor = self.db.execute(query, (self._last_sequence,))
        for row, sequence in rows_from_cursor(cursor):
            self._rows.append(row)
            self._last_sequence = sequence
        return self._rows

    def load_claimed_rows(self) -> tuple[Row, ...]:
        """Imported experiments, which were not measured here, oldest first."""
        return self._select_rows("e.evidence = 'claimed'", order="e.number")

    def load_row(self, number: int) -> Row | None:
        """One decided experiment; None when there is none of this number."""
        rows = self._select_rows("e.number = ? and e.sequence > 0", number)
        return rows[0] if rows else None

    def load_source(self, blob: str) -> str:
        """The train.py or program.md with this git blob id."""
        found = self.db.execute("select text from source where blob = ?", (blob,))
        return decompress_source(found.fetchone()[0])

    def store_source(self, blob: str, text: str) -> None:
        """Store a text under its git blob id."""
        with self.transaction() as db:
            insert_source(db, blob, text)

    def load_open_proposals(self) -> tuple[Proposal, ...]:
        """Proposals without a verdict, oldest first: queued or running."""
        query = (
            "select number, title, text, parent, author, reason, program"
            " from experiment join source using (blob)"
            " where sequence is null order by number"
        )
        return tuple(
            Proposal(
                number, title, decompress_source(text), parent, author, reason, program
            )
            for number, title, text, parent, author, reason, program in (
                self.db.execute(query)
            )
        )

    def load_proposer_calls(
        self, author: str | None = None
    ) -> tuple[ProposerCall, ...]:
        """Calls to one proposer, oldest first; None: to all proposers."""
        found = self.db.execute(
            "select author, asked_at, seconds, dollars, tokens_in, tokens_out, outcome,"
            " parent, blob, transcript from asking where ?1 is null or author = ?1"
            " order by id",
            (author,),
        )
        return tuple(ProposerCall(*line) for line in found)

    @property
    def champion(self) -> Champion | None:
        """The champion of the current series; None before its first keep."""
        return next(reversed(self.load_champions()), None)

    def load_champions(self, series: str | None = None) -> tuple[Champion, ...]:
        """The champions of a series, oldest first, without reverted ones.

        None: the current series.
        """
        found = self.db.execute(
            "select e.number, e.blob, reals(r.value),"
            " total(r.occasion != 'verdict')"
            " from experiment e join run r on r.experiment = e.number"
            " where e.decision = 'keep' and e.series = ? and e.evidence = 'measured'"
            " and e.number not in (select experiment from taken_back)"
            " group by e.number order by e.sequence",
            (series or self.series or self.find_last_series(),),
        )
        return tuple(
            Champion(number, blob, tuple(json.loads(values)), int(fresh))
            for number, blob, values, fresh in found
        )

    @property
    def starting_point(self) -> Champion | None:
        """What the next proposal starts from: the champion, or a promising blob."""
        champion = self.champion
        found = self.db.execute(
            "select blob from start where series = ?",
            (self.series or self.find_last_series(),),
        ).fetchone()
        if champion is None or found is None or found[0] == champion.blob:
            return champion
        rows = self.db.execute(
            "select e.number, reals(r.value) from experiment e"
            " join run r on r.experiment = e.number where e.blob = ? and e.series = ?"
            " group by e.number order by e.sequence desc limit 1",
            (found[0], self.series or self.find_last_series()),
        ).fetchone()
        if rows is None:
            return champion
        return Champion(rows[0], found[0], tuple(json.loads(rows[1])))

    def load_reversions(self) -> tuple[Reversion, ...]:
        """Reverted champions, oldest first."""
        found = self.db.execute(
            "select experiment, instead, why, at, commit_name, in_git from taken_back"
            " order by at, experiment"
        )
        return tuple(
            Reversion(number, instead, why, at, commit, bool(in_git))
            for number, instead, why, at, commit, in_git in found
        )

    def load_unproven_ancestors(self, parent: str) -> tuple[int, ...]:
        """`Row.unproven_ancestors` of a proposal that starts from this blob now."""
        query = UNPROVEN_ANCESTORS_QUERY.format(parent="?1", series="?2", before="?3")
        values = (parent, self.series, END_OF_LEDGER)
        found = self.db.execute(f"select {query}", values).fetchone()
        return parse_number_list(found[0])

    @property
    def run_count(self) -> int:
        """How many runs there are, of all series."""
        (count,) = self.db.execute("select count(*) from run").fetchone()
        return int(count)

    def load_run_records(self, number: int) -> tuple[RunRecord, ...]:
        """An experiment's runs with holdout scores: for reports, never for a policy."""
        found = self.db.execute(
            "select seed, occasion, value, holdout, error, ended_at from run"
            " where experiment = ? order by id",
            (number,),
        )
        return tuple(RunRecord(*line) for line in found)

    def load_last_rows(self, count: int) -> tuple[Row, ...]:
        """The newest verdicts, oldest of them first."""
        newest = self.db.execute(
            "select min(sequence) from (select sequence from experiment where sequence"
            " is not null and evidence = 'measured' order by sequence desc limit ?)",
            (count,),
        )
        (since,) = newest.fetchone()
        return self._select_rows("e.sequence >= ? and e.evidence = 'measured'", since)

    def find_first_keep(self, series: str) -> int | None:
        """The first keep of a series, its baseline; None before there is one."""
        found = self.db.execute(
            "select number from experiment where decision = 'keep' and series = ?"
            " order by sequence limit 1",
            (series,),
        ).fetchone()
        return found[0] if found else None

    def find_last_keep(self) -> Row | None:
        """The last keep of any series; None in a fresh ledger."""
        found = self.db.execute(
            "select number from experiment where decision = 'keep'"
            " and evidence = 'measured' order by sequence desc limit 1"
        ).fetchone()
        return self.load_row(found[0]) if found else None

    def find_last_series(self) -> str:
        """The series of the last verdict; "" in a fresh ledger."""
        found = self.db.execute(
            "select series from experiment where sequence is not null"
            " and evidence = 'measured' order by sequence desc limit 1"
        ).fetchone()
        return found[0] if found else ""

    def load_series_facts(self, series: str) -> dict[str, object]:
        """The facts that a series' hash is computed from; empty if it is unknown."""
        found = self.db.execute("select facts from series where hash = ?", (series,))
        row = found.fetchone()
        return dict(json.loads(row[0])) if row else {}

    @property
    def base_seed(self) -> int:
        """The seed from which the seeds of the current series' runs are derived."""
        found = self.db.execute(
            "select seed from series where hash = ?", (self.series,)
        )
        return int(found.fetchone()[0])

    def find_same_code(self, code: str, parent: str, number: int | None) -> int | None:
        """The number of another experiment with this code; None if the code is new.

        A measured experiment counts whatever its parent; one that was refused or
        failed counts only with this parent. number: of the proposal itself, if it has
        one.
        """
        found = self.db.execute(
            "select number from experiment where code = ?"
            " and (parent = ? or value is not null)"
            " and number is not ? and kind is not 'duplicate'"
            " and (sequence is not null or number < ?)"
            " and (series = ? or series is null) order by number",
            (
                *(code, parent, number),
                *(END_OF_LEDGER if number is None else number, self.series),
            ),
        ).fetchone()
        return found[0] if found else None

    @property
    def chain_head(self) -> str:
        """The newest link of the hash chain."""
        return hash_chain.load_head_link(self.db)

    def load_unpublished_rows(self) -> tuple[Row, ...]:
        """Decided experiments that git does not have yet, oldest first."""
        return self._select_rows("e.in_git = 0 and e.sequence > 0")

    def count_experiments(self) -> dict[str, int]:
        """Counts of experiments by outcome, and of runs.

        `kept` excludes baselines and reverted champions; `discarded` excludes the
        unresolved and runs ended early; imported claims are in `claimed` only.
        """
        found = dict(
            self.db.execute(
                "select case when evidence = 'claimed' then 'claimed'"
                " when decision = 'keep' and against is null then 'baseline'"
                " when number in (select experiment from taken_back) then 'back'"
                " when kind = 'ended early' then kind"
                " else coalesce(outcome, decision) end, count(*)"
                " from experiment where sequence is not null group by 1"
            ).fetchall()
        )
        (runs,) = self.db.execute(
            "select count(*) from run join experiment on number = experiment"
            " where evidence = 'measured'"
        ).fetchone()
        claimed = found.pop("claimed", 0)
        return {
            "experiments": sum(found.values()),
            "kept": found.get("keep", 0),
            "baselines": found.get("baseline", 0),
            "taken_back": found.get("back", 0),
            "discarded": found.get("discard", 0),
            "unresolved": found.get("unresolved", 0),
            "ended_early": found.get("ended early", 0),
            "failed": found.get("failed", 0),
            "runs": runs,
            "claimed": claimed,
        }

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def require_intact(self) -> None:
        """Read the whole file; raises LabError if it is damaged anywhere."""
        try:
            (found,) = self.db.execute("pragma quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise damaged_ledger_error(self.path, " ".join(found.split()))

    # -- internal ----------------------------------------------------------------------

    def _select_rows(
        self, where: str, *values: object, order: str = "e.sequence"
    ) -> tuple[Row, ...]:
        """The rows that an SQL condition selects; `values` are its parameters."""
        query = f"{ROW_QUERY} where {where} group by e.number order by {order}"
        cursor = self.db.execute(query, values)
        return tuple(row for row, _ in rows_from_cursor(cursor))

    def _insert_run(
        self, db: sqlite3.Connection, score: Score, occasion: Occasion
    ) -> None:
        run = score.run
        spared = json.dumps(asdict(run.spared)) if run.spared else None
        added = db.execute(
            "insert into run (experiment, series, seed, value, error, seconds,"
            " startup_seconds, evaluation_seconds, memory_gb, facts, log, ended_at,"
            " occasion, holdout, curve, schedule, spared, health)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run.candidate.proposal.number, self.series, run.seed),
                *(score.value, score.error, run.seconds, run.startup_seconds),
                *(score.seconds, run.memory_gb, json.dumps(run.facts)),
                *(run.log.name, score.ended_at, occasion, score.holdout),
                *(early_stopping.curve_to_json(run.curve), run.schedule, spared),
                json.dumps(run.health) if run.health else None,
            ),
        )
        assert added.lastrowid is not None
        hash_chain.append_entry(db, "run", added.lastrowid)

    def _has_experiment(self, number: int) -> bool:
        query = "select 1 from experiment where number = ?"
        return self.db.execute(query, (number,)).fetchone() is not None

    def _reload_row(self, number: int | None) -> None:
        """Read the cached row of an experiment again after it changed."""
        for place, row in enumerate(self._rows):
            if row.number == number:
                changed = self.load_row(row.number)
                assert changed is not None
                self._rows[place] = changed

    def _clear_row_cache(self) -> None:
        self._rows, self._last_sequence = [], 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """An atomic transaction, also under kill -9."""
        self.db.execute("begin immediate")
        try:
            yield self.db
        except BaseException:
            if self.db.in_transaction:  # a full disk has ended it already
                self.db.execute("rollback")
            raise
        self.db.execute("commit")


def copy_ledger(path: Path, place: Path) -> Path:
    """Copy a ledger with its write-ahead log into a writable folder.

    To read a ledger in a read-only folder: SQLite opens a write-ahead log only where
    it can write beside it.
    """
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, place / part.name)
    return place / path.name


def derive_series_seed(series: str) -> int:
    """The default seed of a series, from its hash."""
    return int.from_bytes(hashlib.sha256(series.encode()).digest()[:4], "little") >> 1
