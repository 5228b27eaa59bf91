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
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from autoresearch import __version__, chain, curves
from autoresearch.errors import LabError
from autoresearch.experiment import (
    Champion,
    Curve,
    Decision,
    Facts,
    Failure,
    Kind,
    Proposal,
    Score,
    Scores,
    Verdict,
)
from autoresearch.policy import UNRESOLVED

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
    chain.TABLE,
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
    chain.WIDER,
    # How the GPU was during a run. NULL: nobody looked, or there is none.
    """
    alter table run add column health text check (health is null or json_valid(health));
    """,
)
IN_LEDGER_ONLY = ("refused", "duplicate")  # no train.py of theirs ever ran
# Why a run was made: for its own verdict, because its experiment is the champion that
# others are held against, or to replicate a night's gain.
Occasion = Literal["verdict", "champion", "replicate"]


@dataclass(frozen=True, slots=True)
class Row:
    """One decided experiment, as every view reads it."""

    number: int
    title: str
    reason: str  # the proposer's
    author: str
    parent: str
    blob: str
    program: str
    series: str
    decision: Decision
    why: str  # the policy's, or what failed
    kind: Kind | None  # None: it did not fail
    value: float | None  # mean over all its runs; None: failed, or ended early
    # Its mean less the champion's without the luck of seeds, as it was decided. None:
    # it failed, or is a baseline.
    delta: float | None
    against: int | None  # the champion's experiment; None: a baseline
    runs: int
    values: tuple[float, ...]  # the champion's grow when it runs again
    when: tuple[float, ...]  # seconds since 1970, at the end of each run; or empty
    seeds: tuple[int, ...]  # of each run; 0: not known
    seconds: float  # trained, over all runs
    evaluation_seconds: float
    memory_gb: float | None  # None: no run came to its end
    facts: Facts  # of the last run, by its own word
    health: Facts  # of the GPU in the last run; or empty
    proposed_at: float
    decided_at: float
    commit: str | None  # None: in the ledger only
    log: str | None
    evidence: str
    way: tuple[int, ...]  # unproven experiments that it stands on, its champion's not


@dataclass(frozen=True, slots=True)
class Asking:
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
class TakenBack:
    """A champion that turned out worse than the one before it."""

    experiment: int
    instead: int  # who reigns again
    why: str
    at: float
    commit: str
    in_git: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, as a report sees it."""

    seed: int
    occasion: Occasion
    value: float
    holdout: float | None  # None: it was not scored there
    error: float
    at: float | None  # seconds since 1970, at its end; None: unknown


@dataclass(frozen=True, slots=True)
class LastRun:
    """Where the time of one run went, and how its loss fell."""

    seconds: float  # trained
    startup_seconds: float
    evaluation_seconds: float
    curve: Curve  # as it reported it; empty where it did not


class Reals:
    """`reals(x)`: numbers as a JSON list, each digit for digit what is stored.

    SQLite's own json_group_array cuts them to 15 digits, and then a commit that has
    them all seems to say another score.
    """

    def __init__(self) -> None:
        self._found: list[float] = []

    def step(self, value: float) -> None:
        """One more."""
        self._found.append(value)

    def finalize(self) -> Any:  # typeshed knows only those that end in an int
        """All of them."""
        return json.dumps(self._found)


# From what an experiment started from back to a champion's train.py: the experiments
# on the way, which brought changes that this one has besides its own. A plus keeps
# SQLite from any index but that of blobs: with another, it took 2 ms a row.
WAY = """
    (with recursive line(number, blob, parent) as (
         select number, blob, parent from experiment where blob = {parent}
         and +series = {series} and +decision = 'discard' and +sequence < {before}
         union
         select p.number, p.blob, p.parent
         from line join experiment p on p.blob = line.parent
         where +p.series = {series} and +p.decision = 'discard'
         and p.number < line.number
         and not exists (select 1 from experiment k where k.blob = line.blob
                         and +k.decision = 'keep' and +k.series = {series}
                         and +k.sequence < {before}))
     select json_group_array(number) from line
     where not exists (select 1 from experiment k where k.blob = line.blob
                       and +k.decision = 'keep' and +k.series = {series}
                       and +k.sequence < {before}))
"""
# The columns are Row's fields in Row's order; the plural ones are JSON here.
ROW = """
    select e.number, e.title, e.reason, e.author, e.parent, e.blob, e.program,
           e.series, e.decision, e.why, e.kind, e.value, e.delta, e.against,
           count(r.id),
           coalesce(reals(r.value) filter (where r.id is not null), '[]'),
           coalesce(reals(r.ended_at) filter (where r.ended_at is not null), '[]'),
           json_group_array(r.seed) filter (where r.id is not null),
           total(r.seconds), total(r.evaluation_seconds), max(r.memory_gb),
           (select facts from run where experiment = e.number order by id desc limit 1),
           (select health from run where experiment = e.number
            order by id desc limit 1),
           e.proposed_at, e.decided_at, e.commit_name, e.log, e.evidence,
           /* way */,
           e.sequence
    from experiment e left join run r on r.experiment = e.number
""".replace(
    "/* way */",
    WAY.format(parent="e.parent", series="e.series", before="e.sequence"),
)


class Ledger:
    """Everything that was ever proposed and decided. Only the loop writes verdicts."""

    def __init__(self, path: Path, *, lower_is_better: bool = True) -> None:
        self.path = path
        self.lower_is_better = lower_is_better
        self.series = ""  # the present one; set by `begin`
        self._session: int | None = None  # None: nobody has begun; views never do
        self._rows: list[Row] = []
        self._read_up_to = 0
        self.db = connect(path)

    # -- writing, in the order of an experiment ----------------------------------------

    def begin(self, series: str, facts: str, seed: int | None, options: str) -> None:
        """Open a session in a series.

        A new series gets the seed it is given, or one that follows from its name, so
        that a ledger rebuilt from git goes on with the same seeds.
        """
        self.require_whole()
        if seed is None:
            seed = seed_of_series(series)
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

    def admit(self, proposal: Proposal, blob: str, code: str) -> Proposal:
        """Put a proposal on record and number it. Already numbered: as it is."""
        if proposal.number is not None and self._has(proposal.number):
            return proposal
        with self.transaction() as db:
            number = proposal.number
            if number is None:
                (last,) = db.execute("select max(number) from experiment").fetchone()
                number = max(last or 0, 0) + 1
            keep_source(db, blob, proposal.source)
            db.execute(
                "insert into experiment (number, title, reason, author, parent, blob,"
                " code, program, proposed_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(number, proposal.title, proposal.reason, proposal.author),
                    *(proposal.parent, blob, code, proposal.program, time.time()),
                ),
            )
        return numbered(proposal, number)

    def decide(self, verdict: Verdict, *, commit: str | None, at: float) -> Row:
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
                    self._add_run(db, score, "verdict")
            done = db.execute(
                "update experiment set decision = ?, why = ?, kind = ?, value = ?,"
                " delta = ?, against = ?, decided_at = ?, session = ?, series = ?,"
                " log = ?, ended_at_share = ?, commit_name = ?, in_git = ?, sequence ="
                " (select coalesce(max(sequence), 0) + 1 from experiment)"
                " where number = ? and decision is null",
                (
                    *(verdict.decision, verdict.reason, failure and failure.kind),
                    *(value, delta, against and against.number, at, self._session),
                    *(self.series, failure and failure.log and failure.log.name),
                    *(failure and failure.share, commit, commit is None, number),
                ),
            )
            assert done.rowcount == 1, f"experiment {number} was decided twice"
            assert number is not None
            chain.extend(db, "verdict", number)
            if commit is not None:
                chain.extend(db, "commit", number)
        return self.rows()[-1]

    def add_runs(self, scores: Scores, occasion: Occasion) -> None:
        """Further runs of a decided experiment: its champion's, or to replicate it."""
        with self.transaction() as db:
            for score in scores:
                self._add_run(db, score, occasion)
        for score in scores:
            self._reread(score.run.candidate.proposal.number)

    def take_back(
        self, former: Champion, champion: Champion, why: str, commit: str, at: float
    ) -> None:
        """Record that a champion was worse than the one before, which reigns again."""
        with self.transaction() as db:
            db.execute(
                "insert into taken_back values (?, ?, ?, ?, ?, ?, 0)",
                (champion.number, former.number, self.series, why, at, commit),
            )
            chain.extend(db, "taken back", champion.number)

    def start_from(self, blob: str) -> None:
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

    def rename_taken_back(self, number: int, commit: str) -> None:
        """The commit that took a champion back was made anew."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set commit_name = ? where experiment = ?",
                (commit, number),
            )
            chain.extend(db, "taken back", number)

    def published_taken_back(self, number: int) -> None:
        """Git knows of it now."""
        with self.transaction() as db:
            db.execute(
                "update taken_back set in_git = 1 where experiment = ?", (number,)
            )

    def rename_commit(self, number: int, commit: str) -> None:
        """A keep was made anew, on what the human committed meanwhile."""
        with self.transaction() as db:
            db.execute(
                "update experiment set commit_name = ? where number = ?",
                (commit, number),
            )
            chain.extend(db, "commit", number)
        self._forget()

    def published(self, number: int) -> None:
        """Git knows of this verdict now."""
        with self.transaction() as db:
            db.execute("update experiment set in_git = 1 where number = ?", (number,))

    def asked(self, asking: Asking) -> None:
        """Put on record what was asked, what it cost and how it ended."""
        with self.transaction() as db:
            db.execute(
                "insert into asking (author, asked_at, seconds, dollars, tokens_in,"
                " tokens_out, outcome, parent, blob, transcript)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                astuple(asking),
            )

    # -- reading -----------------------------------------------------------------------

    def rows(self) -> Sequence[Row]:
        """Every decided experiment, in the order of decision. Do not change it.

        What others claim is not among them, so nobody who proposes or decides sees it.
        """
        query = (
            f"{ROW} where e.sequence > ? and e.evidence = 'measured'"
            " group by e.number order by e.sequence"
        )
        for found in self.db.execute(query, (self._read_up_to,)):
            self._rows.append(row_of(found))
            self._read_up_to = found[-1]
        return self._rows

    def claimed(self) -> tuple[Row, ...]:
        """What was imported and measured by nobody here, oldest first."""
        query = f"{ROW} where e.evidence = 'claimed' group by e.number order by 1"
        return tuple(row_of(found) for found in self.db.execute(query))

    def row(self, number: int) -> Row | None:
        """One decided experiment; None when there is none of this number."""
        query = f"{ROW} where e.number = ? and e.sequence > 0 group by e.number"
        found = self.db.execute(query, (number,)).fetchone()
        return row_of(found) if found else None

    def source(self, blob: str) -> str:
        """The train.py (or program.md) that git calls by this name."""
        found = self.db.execute("select text from source where blob = ?", (blob,))
        return unpacked(found.fetchone()[0])

    def remember(self, blob: str, text: str) -> None:
        """Keep a text that experiments refer to by its name."""
        with self.transaction() as db:
            keep_source(db, blob, text)

    def programs(self) -> Iterator[str]:
        """Every program.md that proposals were made by, the newest first."""
        found = self.db.execute(
            "select text from source join (select program, max(number) as last"
            " from experiment group by program) on blob = program order by last desc"
        )
        return (unpacked(text) for (text,) in found.fetchall())

    def open(self) -> tuple[Proposal, ...]:
        """Proposals without a verdict, oldest first: waiting, or in hand."""
        query = (
            "select number, title, text, parent, author, reason, program"
            " from experiment join source using (blob)"
            " where sequence is null order by number"
        )
        return tuple(
            Proposal(number, title, unpacked(text), parent, author, reason, program)
            for number, title, text, parent, author, reason, program in (
                self.db.execute(query)
            )
        )

    def askings(self, author: str | None = None) -> tuple[Asking, ...]:
        """What was asked of one proposer, or of all, oldest first."""
        found = self.db.execute(
            "select author, asked_at, seconds, dollars, tokens_in, tokens_out, outcome,"
            " parent, blob, transcript from asking where ?1 is null or author = ?1"
            " order by id",
            (author,),
        )
        return tuple(Asking(*line) for line in found)

    @property
    def champion(self) -> Champion | None:
        """The best candidate of the present series; None before its first keep."""
        return next(reversed(self.champions()), None)

    def champions(self, series: str | None = None) -> tuple[Champion, ...]:
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
            (series or self.series or self.last_series(),),
        )
        return tuple(
            Champion(number, blob, tuple(json.loads(values)), int(fresh))
            for number, blob, values, fresh in found
        )

    @property
    def start(self) -> Champion | None:
        """What the next idea starts from: the champion, or what promises more."""
        champion = self.champion
        found = self.db.execute(
            "select blob from start where series = ?",
            (self.series or self.last_series(),),
        ).fetchone()
        if champion is None or found is None or found[0] == champion.blob:
            return champion
        rows = self.db.execute(
            "select e.number, reals(r.value) from experiment e"
            " join run r on r.experiment = e.number where e.blob = ? and e.series = ?"
            " group by e.number order by e.sequence desc limit 1",
            (found[0], self.series or self.last_series()),
        ).fetchone()
        if rows is None:
            return champion
        return Champion(rows[0], found[0], tuple(json.loads(rows[1])))

    def taken_back(self) -> tuple[TakenBack, ...]:
        """Champions that turned out worse, oldest first."""
        found = self.db.execute(
            "select experiment, instead, why, at, commit_name, in_git from taken_back"
            " order by at, experiment"
        )
        return tuple(
            TakenBack(number, instead, why, at, commit, bool(in_git))
            for number, instead, why, at, commit, in_git in found
        )

    def way(self, parent: str) -> tuple[int, ...]:
        """What a proposal stands on that starts here now, as `Row.way` will say."""
        query = f"select {WAY.format(parent='?1', series='?2', before='?3')}"
        found = self.db.execute(query, (parent, self.series, 1 << 62)).fetchone()
        return in_order(found[0])

    def paces(self, number: int) -> tuple[float, ...]:
        """Tokens per second of an experiment's runs, by their own count."""
        found = self.db.execute(
            "select facts, seconds from run where experiment = ? order by id", (number,)
        )
        told = ((dict(facts_in(facts)).get("tokens"), took) for facts, took in found)
        return tuple(
            float(tokens) / took
            for tokens, took in told
            if isinstance(tokens, int | float) and took > 0
        )

    def last_run(self, number: int) -> LastRun | None:
        """An experiment's newest run, for whoever proposes; None: it made none."""
        found = self.db.execute(
            "select seconds, startup_seconds, evaluation_seconds, curve from run"
            " where experiment = ? order by id desc limit 1",
            (number,),
        ).fetchone()
        if found is None:
            return None
        trained, started, scored, curve = found
        points = curves.unpacked(curve) if curve else ()
        return LastRun(trained, started, scored, points)

    @property
    def runs_made(self) -> int:
        """How many runs there are, of all series."""
        (count,) = self.db.execute("select count(*) from run").fetchone()
        return int(count)

    def seeds(self, number: int) -> set[int]:
        """What an experiment's train.py was run with, under this number or others."""
        found = self.db.execute(
            "select seed from run where experiment in (select number from experiment"
            " where blob = (select blob from experiment where number = ?))",
            (number,),
        )
        return {seed for (seed,) in found}

    def measured(self, number: int) -> tuple[Measured, ...]:
        """An experiment's runs, with the holdout. For reports, never for a policy."""
        found = self.db.execute(
            "select seed, occasion, value, holdout, error, ended_at from run"
            " where experiment = ? order by id",
            (number,),
        )
        return tuple(Measured(*line) for line in found)

    def finished(self, series: str) -> tuple[tuple[curves.Finished, bool | None], ...]:
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
        told: list[tuple[curves.Finished, bool | None]] = []
        for curve, value, schedule, spared, parent in found:
            points = curves.unpacked(curve)
            bar = json.loads(spared)["bar"] if spared else None
            won = None if bar is None else sign * value < sign * bar
            run = curves.Finished(points, value, bool(schedule), parent)
            told.append((run, won))
        return tuple(told)

    def ended_early(self, series: str) -> tuple[float, ...]:
        """At which share of their budget hopeless runs were ended."""
        found = self.db.execute(
            "select ended_at_share from experiment where series = ?"
            " and ended_at_share is not null order by sequence",
            (series,),
        )
        return tuple(share for (share,) in found)

    def last(self, count: int) -> tuple[Row, ...]:
        """The newest verdicts, oldest of them first."""
        newest = self.db.execute(
            "select min(sequence) from (select sequence from experiment where sequence"
            " is not null and evidence = 'measured' order by sequence desc limit ?)",
            (count,),
        )
        (since,) = newest.fetchone()
        query = (
            f"{ROW} where e.sequence >= ? and e.evidence = 'measured'"
            " group by e.number order by e.sequence"
        )
        return tuple(row_of(line) for line in self.db.execute(query, (since,)))

    def first_keep(self, series: str) -> int | None:
        """The experiment a series started from; None before it did."""
        found = self.db.execute(
            "select number from experiment where decision = 'keep' and series = ?"
            " order by sequence limit 1",
            (series,),
        ).fetchone()
        return found[0] if found else None

    def last_keep(self) -> Row | None:
        """The champion of whichever series was last; None in a fresh ledger."""
        found = self.db.execute(
            "select number from experiment where decision = 'keep'"
            " and evidence = 'measured' order by sequence desc limit 1"
        ).fetchone()
        return self.row(found[0]) if found else None

    def last_series(self) -> str:
        """The series of the last verdict; "" in a fresh ledger."""
        found = self.db.execute(
            "select series from experiment where sequence is not null"
            " and evidence = 'measured' order by sequence desc limit 1"
        ).fetchone()
        return found[0] if found else ""

    def series_facts(self, series: str) -> dict[str, object]:
        """What a series' hash stands for."""
        found = self.db.execute("select facts from series where hash = ?", (series,))
        row = found.fetchone()
        return dict(json.loads(row[0])) if row else {}

    @property
    def seed(self) -> int:
        """What the seeds of the present series' runs are drawn from."""
        found = self.db.execute(
            "select seed from series where hash = ?", (self.series,)
        )
        return int(found.fetchone()[0])

    def same_code(self, code: str, parent: str, number: int | None) -> int | None:
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
        return chain.head(self.db)

    def not_in_git(self) -> tuple[Row, ...]:
        """Decided experiments that git has not learned of, oldest first."""
        query = (
            f"{ROW} where e.in_git = 0 and e.sequence > 0"
            " group by e.number order by e.sequence"
        )
        return tuple(row_of(found) for found in self.db.execute(query))

    def counts(self) -> dict[str, int]:
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
                " when decision = 'discard' and why like ? || '%' then 'unresolved'"
                " else decision end, count(*)"
                " from experiment where sequence is not null group by 1",
                (UNRESOLVED,),
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

    def require_whole(self) -> None:
        """LabError when the file is damaged anywhere; reads all of it."""
        try:
            (found,) = self.db.execute("pragma quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise damaged(self.path, " ".join(found.split()))

    # -- inside ------------------------------------------------------------------------

    def _add_run(
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
                *(run.log.name, score.at, occasion, score.holdout),
                *(curves.packed(run.curve), run.schedule, spared),
                json.dumps(run.health) if run.health else None,
            ),
        )
        assert added.lastrowid is not None
        chain.extend(db, "run", added.lastrowid)

    def _has(self, number: int) -> bool:
        query = "select 1 from experiment where number = ?"
        return self.db.execute(query, (number,)).fetchone() is not None

    def _reread(self, number: int | None) -> None:
        """A decided experiment changed: let `rows` say what it says now."""
        for place, row in enumerate(self._rows):
            if row.number == number:
                again = self.row(row.number)
                assert again is not None
                self._rows[place] = again

    def _forget(self) -> None:
        self._rows, self._read_up_to = [], 0

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


def effects(rows: Sequence[Row]) -> dict[int, float]:
    """What each change did to the score: its value less its parent's, by experiment.

    Not `Row.delta`, which is against the champion: a proposal may start from something
    that promises more. Where the parent was not measured, that is all there is.
    """
    # By series: the same file scores otherwise with another budget or another text.
    values = {
        (row.series, row.blob): row.value for row in rows if row.value is not None
    }
    found = {}
    for row in rows:
        if row.value is None or row.delta is None:
            continue
        before = values.get((row.series, row.parent))
        found[row.number] = row.delta if before is None else row.value - before
    return found


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger and bring its tables up to date, or LabError if it is damaged."""
    try:
        db = sqlite3.connect(
            path, isolation_level=None, timeout=30, check_same_thread=False
        )
        db.create_aggregate("reals", 1, Reals)
        write_ahead(db)
        db.execute("pragma synchronous = full")
        migrate(db)  # may replace tables that others refer to
        db.execute("pragma foreign_keys = on")
    except sqlite3.OperationalError as error:
        raise LabError(
            f"{path} cannot be opened ({error}). Next: check that you may write to "
            "that folder and that no other program holds the file"
        ) from None
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from None
    return db


def copied(path: Path, place: Path) -> Path:
    """A copy of a ledger in a folder that can be written, with what it did not settle.

    SQLite opens no write-ahead log without writing beside it.
    """
    for suffix in ("", "-wal"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            shutil.copyfile(part, place / part.name)
    return place / path.name


def write_ahead(db: sqlite3.Connection, patience: float = 30.0) -> None:
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


def damaged(path: Path, how: str) -> LabError:
    """What to say of a ledger that is not whole any more."""
    return LabError(
        f"{path} cannot be read ({how}). "
        "Next: autoresearch rebuild   (makes it anew from git)"
    )


def step(db: sqlite3.Connection, version: int) -> None:
    """One migration, inside a transaction: `executescript` would end that first."""
    for statement in statements(MIGRATIONS[version]):
        db.execute(statement)
    db.execute(f"pragma user_version = {version + 1}")
    if MIGRATIONS[version] is chain.TABLE:
        chain.adopt(db)  # what an older version wrote, this once
    if broken := db.execute("pragma foreign_key_check").fetchone():
        raise sqlite3.DatabaseError(f"a reference of {broken[0]} is broken")


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one."""
    whole = ""
    for part in script.split(";"):
        whole += f"{part};"
        if sqlite3.complete_statement(whole):
            yield whole
            whole = ""


def migrate(db: sqlite3.Connection) -> None:
    """Run the migrations this ledger has not seen, each with the note that it ran."""
    while (version := chain.format_of(db)) < len(MIGRATIONS):
        db.execute("begin immediate")
        try:
            if chain.format_of(db) == version:  # else another process was faster
                step(db, version)
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


def keep_source(db: sqlite3.Connection, blob: str, text: str) -> None:
    """Store a text under git's name for it, once."""
    packed = zlib.compress(text.encode())
    db.execute("insert or ignore into source values (?, ?)", (blob, packed))


def seed_of_series(series: str) -> int:
    """What a series' seeds are drawn from when nobody said otherwise."""
    return int.from_bytes(hashlib.sha256(series.encode()).digest()[:4], "little") >> 1


def unpacked(packed: bytes) -> str:
    return zlib.decompress(packed).decode()


def numbered(proposal: Proposal, number: int) -> Proposal:
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


def in_order(numbers: str) -> tuple[int, ...]:
    """A JSON list of experiments, each once, the oldest first."""
    return tuple(sorted(set(json.loads(numbers))))


def facts_in(text: str | None) -> Facts:
    """Facts as a column holds them."""
    return tuple((key, value) for key, value in json.loads(text or "[]"))


def row_of(found: tuple[Any, ...]) -> Row:
    """A line of the ROW query -> Row."""
    values, when = tuple(json.loads(found[15])), tuple(json.loads(found[16]))
    fields = (
        *found[:11],
        fmean(values) if values else found[11],
        *found[12:15],
        values,
        when if len(when) == len(values) else (),
        tuple(json.loads(found[17])),
        *found[18:21],
        facts_in(found[21]),
        facts_in(found[22]),
        *found[23:28],
        in_order(found[28]),
    )
    return Row(*fields)
