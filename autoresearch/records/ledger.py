"""The ledger: what was proposed, what ran, what was decided. SQLite; one writer.

Promises: a proposal is on record before anything runs, and ends in exactly one verdict;
a failed experiment has no metric (the database refuses one); a verdict and everything
that belongs to it are one transaction; what git still has to learn of a verdict is
marked until git has it. results.tsv is a view, never a source.

A ledger edited by hand is found by `autoresearch verify-ledger`: rows are chained by
hashes (`chain`). Not covered: an editor who redoes the chain as well.
"""

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean

from autoresearch import __version__
from autoresearch.experiment import (
    Champion,
    Curve,
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
    parse_facts_column,
    parse_number_list,
    row_from_columns,
)
from autoresearch.records.schema import (
    damaged_ledger_error,
    decompress_source,
    insert_source,
    open_database,
)
from autoresearch.stats import early_stopping

LEDGER_ONLY_KINDS = ("refused", "duplicate")  # no train.py of theirs ever ran


@dataclass(frozen=True, slots=True)
class ProposerCall:
    """One question to somebody who proposes, and how it ended."""

    author: str
    asked_at: float
    seconds: float
    dollars: float | None  # None: unknown
    tokens_in: int | None  # None: unknown
    tokens_out: int | None
    outcome: str  # "proposed", "refused: ...", "limit until 03:10: ...", ...
    parent: str  # the champion it was asked about
    blob: str  # of the train.py that came of it; "" when none did
    transcript: str  # name of a file under .autoresearch/asked


@dataclass(frozen=True, slots=True)
class Reversion:
    """A champion that turned out worse than the one before it."""

    reverted_number: int
    restored_number: int  # who reigns again
    why: str
    reverted_at: float
    commit: str
    is_in_git: bool


@dataclass(frozen=True, slots=True)
class RunBreakdown:
    """Where the time of one run went, and how its loss fell."""

    training_seconds: float  # trained
    startup_seconds: float
    evaluation_seconds: float
    curve: Curve  # as it reported it; empty where it did not


class Ledger:
    """Everything that was ever proposed and decided. Only the loop writes verdicts."""

    def __init__(self, path: Path, *, lower_is_better: bool = True) -> None:
        self.path = path
        self.lower_is_better = lower_is_better
        self.series = ""  # the present one; set by `begin`
        self._session: int | None = None  # None: nobody has begun; views never do
        self._rows: list[Row] = []
        self._last_sequence = 0
        self.db = open_database(path)

    # -- writing, in the order of an experiment ----------------------------------------

    def begin_session(
        self, series: str, facts: str, seed: int | None, options: str
    ) -> None:
        """Open a session in a series.

        A new series gets the seed it is given, or one that follows from its name, so
        that a ledger rebuilt from git goes on with the same seeds.
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
        """Put a proposal on record and number it. Already numbered: as it is."""
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
        return assign_number(proposal, number)

    def record_verdict(self, verdict: Verdict, *, commit: str | None, at: float) -> Row:
        """Record a verdict. `commit` is the name git will know it by, if it will."""
        failure = verdict.evidence if isinstance(verdict.evidence, Failure) else None
        value = fmean(verdict.values) if verdict.values else None
        against = verdict.against
        delta = verdict.delta
        if delta is None and value is not None and against is not None:
            delta = value - fmean(against.values)
        number = verdict.proposal.number
        with self.transaction() as db:
            if not isinstance(verdict.evidence, Failure):
                for score in verdict.evidence:
                    self._insert_run(db, score, "verdict")
            done = db.execute(
                "update experiment set decision = ?, outcome = ?, why = ?, kind = ?,"
                " value = ?,"
                " delta = ?, against = ?, decided_at = ?, session = ?, series = ?,"
                " log = ?, ended_at_share = ?, commit_name = ?, in_git = ?, sequence ="
                " (select coalesce(max(sequence), 0) + 1 from experiment)"
                " where number = ? and decision is null",
                (
                    *(
                        status_from_decision(verdict.decision),
                        verdict.decision,
                        verdict.reason,
                    ),
                    failure and failure.kind,
                    *(value, delta, against and against.number, at, self._session),
                    *(self.series, failure and failure.log and failure.log.name),
                    *(failure and failure.share, commit, commit is None, number),
                ),
            )
            assert done.rowcount == 1, f"experiment {number} was decided twice"
            assert number is not None
            hash_chain.append_entry(db, "verdict", number)
            if commit is not None:
                hash_chain.append_entry(db, "commit", number)
        return self.load_rows()[-1]

    def record_runs(self, scores: Scores, occasion: Occasion) -> None:
        """Further runs of a decided experiment: its champion's, or to replicate it."""
        with self.transaction() as db:
            for score in scores:
                self._insert_run(db, score, occasion)
        for score in scores:
            self._reload_row(score.run.candidate.proposal.number)

    def record_reversion(
        self, former: Champion, champion: Champion, why: str, commit: str, at: float
    ) -> None:
        """Record that a champion was worse than the one before, which reigns again."""
        with self.transaction() as db:
            db.execute(
                "insert into taken_back values (?, ?, ?, ?, ?, ?, 0)",
                (champion.number, former.number, self.series, why, at, commit),
            )
            hash_chain.append_entry(db, "taken back", champion.number)

    def set_start(self, blob: str) -> None:
        """What the next proposals start from, for whoever proposes, in any process."""
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
        """The commit that took a champion back was made anew."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set commit_name = ? where experiment = ?",
                (commit, number),
            )
            hash_chain.append_entry(db, "taken back", number)

    def mark_reversion_published(self, number: int) -> None:
        """Git knows of it now."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set in_git = 1 where experiment = ?", (number,)
            )

    def rename_verdict_commit(self, number: int, commit: str) -> None:
        """A keep was made anew, on what the human committed meanwhile."""
        with self.transaction() as db:
            db.execute(
                "update experiment set commit_name = ? where number = ?",
                (commit, number),
            )
            hash_chain.append_entry(db, "commit", number)
        self._clear_row_cache()

    def mark_verdict_published(self, number: int) -> None:
        """Git knows of this verdict now."""
        with self.transaction() as db:
            db.execute("update experiment set in_git = 1 where number = ?", (number,))

    def record_proposer_call(self, asking: ProposerCall) -> None:
        """Put on record what was asked, what it cost and how it ended."""
        with self.transaction() as db:
            db.execute(
                "insert into asking (author, asked_at, seconds, dollars, tokens_in,"
                " tokens_out, outcome, parent, blob, transcript)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                astuple(asking),
            )

    # -- reading -----------------------------------------------------------------------

    def load_rows(self) -> Sequence[Row]:
        """Every decided experiment, in the order of decision. Do not change it.

        What others claim is not among them, so nobody who proposes or decides sees it.
        """
        query = (
            f"{ROW_QUERY} where e.sequence > ? and e.evidence = 'measured'"
            " group by e.number order by e.sequence"
        )
        for found in self.db.execute(query, (self._last_sequence,)):
            self._rows.append(row_from_columns(found))
            self._last_sequence = found[-1]
        return self._rows

    def load_claimed_rows(self) -> tuple[Row, ...]:
        """What was imported and measured by nobody here, oldest first."""
        query = f"{ROW_QUERY} where e.evidence = 'claimed' group by e.number order by 1"
        return tuple(row_from_columns(found) for found in self.db.execute(query))

    def load_row(self, number: int) -> Row | None:
        """One decided experiment; None when there is none of this number."""
        query = f"{ROW_QUERY} where e.number = ? and e.sequence > 0 group by e.number"
        found = self.db.execute(query, (number,)).fetchone()
        return row_from_columns(found) if found else None

    def load_source(self, blob: str) -> str:
        """The train.py (or program.md) that git calls by this name."""
        found = self.db.execute("select text from source where blob = ?", (blob,))
        return decompress_source(found.fetchone()[0])

    def store_source(self, blob: str, text: str) -> None:
        """Keep a text that experiments refer to by its name."""
        with self.transaction() as db:
            insert_source(db, blob, text)

    def load_programs(self) -> Iterator[str]:
        """Every program.md that proposals were made by, the newest first."""
        found = self.db.execute(
            "select text from source join (select program, max(number) as last"
            " from experiment group by program) on blob = program order by last desc"
        )
        return (decompress_source(text) for (text,) in found.fetchall())

    def load_open_proposals(self) -> tuple[Proposal, ...]:
        """Proposals without a verdict, oldest first: waiting, or in hand."""
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
        """What was asked of one proposer, or of all, oldest first."""
        found = self.db.execute(
            "select author, asked_at, seconds, dollars, tokens_in, tokens_out, outcome,"
            " parent, blob, transcript from asking where ?1 is null or author = ?1"
            " order by id",
            (author,),
        )
        return tuple(ProposerCall(*line) for line in found)

    @property
    def champion(self) -> Champion | None:
        """The best candidate of the present series; None before its first keep."""
        return next(reversed(self.load_champions()), None)

    def load_champions(self, series: str | None = None) -> tuple[Champion, ...]:
        """Who reigned in a series, oldest first; none that was taken back.

        None: the present one.
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
        """What the next idea starts from: the champion, or what promises more."""
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
        """Champions that turned out worse, oldest first."""
        found = self.db.execute(
            "select experiment, instead, why, at, commit_name, in_git from taken_back"
            " order by at, experiment"
        )
        return tuple(
            Reversion(number, instead, why, at, commit, bool(in_git))
            for number, instead, why, at, commit, in_git in found
        )

    def load_unproven_ancestors(self, parent: str) -> tuple[int, ...]:
        """What a proposal stands on that starts here now, as `Row.way` will say."""
        query = f"select {UNPROVEN_ANCESTORS_QUERY.format(parent='?1', series='?2', before='?3')}"
        found = self.db.execute(query, (parent, self.series, 1 << 62)).fetchone()
        return parse_number_list(found[0])

    def load_tokens_per_second(self, number: int) -> tuple[float, ...]:
        """Tokens per second of an experiment's runs, by their own count."""
        found = self.db.execute(
            "select facts, seconds from run where experiment = ? order by id", (number,)
        )
        told = (
            (dict(parse_facts_column(facts)).get("tokens"), took)
            for facts, took in found
        )
        return tuple(
            float(tokens) / took
            for tokens, took in told
            if isinstance(tokens, int | float) and took > 0
        )

    def load_last_run(self, number: int) -> RunBreakdown | None:
        """An experiment's newest run, for whoever proposes; None: it made none."""
        found = self.db.execute(
            "select seconds, startup_seconds, evaluation_seconds, curve from run"
            " where experiment = ? order by id desc limit 1",
            (number,),
        ).fetchone()
        if found is None:
            return None
        trained, started, scored, curve = found
        points = early_stopping.curve_from_json(curve) if curve else ()
        return RunBreakdown(trained, started, scored, points)

    @property
    def run_count(self) -> int:
        """How many runs there are, of all series."""
        (count,) = self.db.execute("select count(*) from run").fetchone()
        return int(count)

    def load_used_seeds(self, number: int) -> set[int]:
        """What an experiment's train.py was run with, under this number or others."""
        found = self.db.execute(
            "select seed from run where experiment in (select number from experiment"
            " where blob = (select blob from experiment where number = ?))",
            (number,),
        )
        return {seed for (seed,) in found}

    def load_run_records(self, number: int) -> tuple[RunRecord, ...]:
        """An experiment's runs, with the holdout. For reports, never for a policy."""
        found = self.db.execute(
            "select seed, occasion, value, holdout, error, ended_at from run"
            " where experiment = ? order by id",
            (number,),
        )
        return tuple(RunRecord(*line) for line in found)

    def load_finished_runs(
        self, series: str
    ) -> tuple[tuple[early_stopping.FinishedRun, bool | None], ...]:
        """First runs with a curve, and of the spared whether they beat their bar."""
        sign = 1.0 if self.lower_is_better else -1.0
        found = self.db.execute(
            "select curve, r.value, schedule, spared, (select p.value from run p"
            " join experiment on number = p.experiment where blob = e.parent"
            " and p.seed = r.seed and p.series = r.series order by p.id limit 1)"
            " from run r join experiment e on e.number = r.experiment"
            " where r.series = ? and curve is not null and occasion = 'verdict'"
            " and id = (select min(id) from run where experiment = r.experiment)"
            " order by id",
            (series,),
        )
        told: list[tuple[early_stopping.FinishedRun, bool | None]] = []
        for curve, value, schedule, spared, parent in found:
            points = early_stopping.curve_from_json(curve)
            bar = json.loads(spared)["bar"] if spared else None
            won = None if bar is None else sign * value < sign * bar
            run = early_stopping.FinishedRun(points, value, bool(schedule), parent)
            told.append((run, won))
        return tuple(told)

    def load_pruned_shares(self, series: str) -> tuple[float, ...]:
        """At which share of their budget hopeless runs were ended."""
        found = self.db.execute(
            "select ended_at_share from experiment where series = ?"
            " and ended_at_share is not null order by sequence",
            (series,),
        )
        return tuple(share for (share,) in found)

    def load_last_rows(self, count: int) -> tuple[Row, ...]:
        """The newest verdicts, oldest of them first."""
        newest = self.db.execute(
            "select min(sequence) from (select sequence from experiment where sequence"
            " is not null and evidence = 'measured' order by sequence desc limit ?)",
            (count,),
        )
        (since,) = newest.fetchone()
        query = (
            f"{ROW_QUERY} where e.sequence >= ? and e.evidence = 'measured'"
            " group by e.number order by e.sequence"
        )
        return tuple(
            row_from_columns(line) for line in self.db.execute(query, (since,))
        )

    def find_first_keep(self, series: str) -> int | None:
        """The experiment a series started from; None before it did."""
        found = self.db.execute(
            "select number from experiment where decision = 'keep' and series = ?"
            " order by sequence limit 1",
            (series,),
        ).fetchone()
        return found[0] if found else None

    def find_last_keep(self) -> Row | None:
        """The champion of whichever series was last; None in a fresh ledger."""
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
        """What a series' hash stands for."""
        found = self.db.execute("select facts from series where hash = ?", (series,))
        row = found.fetchone()
        return dict(json.loads(row[0])) if row else {}

    @property
    def base_seed(self) -> int:
        """What the seeds of the present series' runs are drawn from."""
        found = self.db.execute(
            "select seed from series where hash = ?", (self.series,)
        )
        return int(found.fetchone()[0])

    def find_same_code(self, code: str, parent: str, number: int | None) -> int | None:
        """Another experiment with this code; None if it is new.

        What was measured is known, whatever it was a change of. What was refused or
        failed is known only as a change of this parent.
        """
        found = self.db.execute(
            "select number from experiment where code = ?"
            " and (parent = ? or value is not null)"
            " and number is not ? and kind is not 'duplicate'"
            " and (sequence is not null or number < ?)"
            " and (series = ? or series is null) order by number",
            (code, parent, number, 1 << 62 if number is None else number, self.series),
        ).fetchone()
        return found[0] if found else None

    @property
    def chain_head(self) -> str:
        """The newest link of the chain of rows."""
        return hash_chain.load_head_link(self.db)

    def load_unpublished_rows(self) -> tuple[Row, ...]:
        """Decided experiments that git has not learned of, oldest first."""
        query = (
            f"{ROW_QUERY} where e.in_git = 0 and e.sequence > 0"
            " group by e.number order by e.sequence"
        )
        return tuple(row_from_columns(found) for found in self.db.execute(query))

    def count_experiments(self) -> dict[str, int]:
        """How many experiments were decided each way, and how many runs there were.

        `kept` counts neither what a series began with nor what was taken back,
        `discarded` neither what stayed unresolved nor what was ended early;
        what others claim is counted by itself.
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
        """LabError when the file is damaged anywhere; reads all of it."""
        try:
            (found,) = self.db.execute("pragma quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise damaged_ledger_error(self.path, " ".join(found.split()))

    # -- inside ------------------------------------------------------------------------

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
        """A decided experiment changed: let `rows` say what it says now."""
        for place, row in enumerate(self._rows):
            if row.number == number:
                again = self.load_row(row.number)
                assert again is not None
                self._rows[place] = again

    def _clear_row_cache(self) -> None:
        self._rows, self._last_sequence = [], 0

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, also under kill -9."""
        self.db.execute("begin immediate")
        try:
            yield self.db
        except BaseException:
            if self.db.in_transaction:  # a full disk has ended it already
                self.db.execute("rollback")
            raise
        self.db.execute("commit")


def copy_ledger(path: Path, place: Path) -> Path:
    """A copy of a ledger in a folder that can be written, with what it did not settle.

    SQLite opens no write-ahead log without writing beside it.
    """
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, place / part.name)
    return place / path.name


def derive_series_seed(series: str) -> int:
    """What a series' seeds are drawn from when nobody said otherwise."""
    return int.from_bytes(hashlib.sha256(series.encode()).digest()[:4], "little") >> 1


def assign_number(proposal: Proposal, number: int) -> Proposal:
    """The proposal under its number."""
    return Proposal(
        number,
        proposal.title,
        proposal.source,
        proposal.parent,
        proposal.author,
        proposal.reason,
        proposal.program,
        proposal.refused,
    )
