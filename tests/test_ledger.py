"""The ledger and its view: what is on record, whatever happens to the process."""

import csv
import math
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autoresearch.errors import LabError
from autoresearch.experiment import (
    Candidate,
    Champion,
    Failure,
    Proposal,
    Run,
    Score,
    Verdict,
)
from autoresearch.git import compute_blob_id
from autoresearch.records import results_tsv, row_query, schema
from autoresearch.records.ledger import Ledger
from autoresearch.text import format_delta, format_score

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    ledger.begin_session("series-a", '{"budget": "300 s"}', 7, "{}")
    yield ledger
    ledger.close()


def propose(ledger, title="an idea", source="X = 1\n", **more) -> Proposal:
    proposal = Proposal(
        **{
            "number": None,
            "title": title,
            "source": source,
            "parent": "parent",
            "author": "search",
            "reason": "why not",
            **more,
        }
    )
    return ledger.admit_proposal(proposal, compute_blob_id(source), f"code of {source}")


def scored(proposal, *values, seed=1, **more) -> tuple[Score, ...]:
    candidate = Candidate(proposal, compute_blob_id(proposal.source))
    facts = (("depth", 4), ("text", "Δ"))
    runs = [
        Run(candidate, seed + n, 2.0, 0.5, 1.5, Path("w"), facts, Path(f"{n}.log"))
        for n in range(len(values))
    ]
    return tuple(
        Score(run, value, 0.001, 0.25) for run, value in zip(runs, values, strict=True)
    )


def keep(ledger, proposal, *values, against=None):
    verdict = Verdict("keep", "better", scored(proposal, *values), against)
    return ledger.record_verdict(verdict, commit=f"commit {proposal.number}", at=100.0)


def discard(ledger, proposal, *values):
    verdict = Verdict("discard", "worse", scored(proposal, *values), ledger.champion)
    return ledger.record_verdict(verdict, commit="c", at=101.0)


def fail(ledger, proposal, kind="crash"):
    failure = Failure(Candidate(proposal, "b"), kind, "it broke", Path("logs/3.log"))
    verdict = Verdict("failed", f"{kind}: it broke", failure, ledger.champion)
    return ledger.record_verdict(verdict, commit="c", at=102.0)


# -- from proposal to verdict ----------------------------------------------------------


def test_a_proposal_is_on_record_before_anything_runs(ledger, path):
    admitted = propose(ledger, title="bold")

    (waiting,) = Ledger(path).load_open_proposals()
    assert waiting == admitted
    assert waiting.number == 1
    assert ledger.load_rows() == []


def test_numbers_count_up_from_the_baseline_and_an_admitted_one_keeps_its_own(ledger):
    numbers = [
        propose(ledger, number=0).number,
        propose(ledger).number,
        propose(ledger, source="Y = 2\n").number,
    ]
    again = propose(ledger, number=2, title="another title")

    assert numbers == [0, 1, 2]
    assert again.number == 2
    assert [waiting.title for waiting in ledger.load_open_proposals()] == [
        "an idea"
    ] * 3


def test_the_first_proposal_of_a_ledger_without_a_baseline_is_number_one(ledger):
    assert propose(ledger).number == 1


def test_a_verdict_becomes_one_row_with_everything_it_rests_on(ledger):
    proposal = propose(ledger)

    row = keep(ledger, proposal, 1.0, 2.0, against=Champion(0, "blob", (2.0, 3.0)))

    assert (row.number, row.title, row.reason) == (1, "an idea", "why not")
    assert (row.author, row.parent, row.series) == ("search", "parent", "series-a")
    assert (row.decision, row.why, row.kind) == ("keep", "better", None)
    assert (row.value, row.delta, row.against) == (1.5, -1.0, 0)
    assert (row.runs, row.values) == (2, (1.0, 2.0))
    assert (row.seconds, row.evaluation_seconds, row.memory_gb) == (4.0, 0.5, 1.5)
    assert row.facts == (("depth", 4), ("text", "Δ"))
    assert (row.decided_at, row.commit, row.evidence) == (100.0, "commit 1", "measured")
    assert ledger.load_source(row.blob) == "X = 1\n"
    assert ledger.load_open_proposals() == ()


def test_a_failure_has_a_kind_and_a_log_and_no_number_at_all(ledger):
    row = fail(ledger, propose(ledger))

    assert (row.decision, row.kind, row.why) == ("failed", "crash", "crash: it broke")
    assert (row.value, row.delta, row.memory_gb) == (None, None, None)
    assert (row.runs, row.values, row.facts) == (0, (), ())
    assert row.log == "3.log"


@pytest.mark.parametrize(
    "forgery",
    [
        "update experiment set value = 0.5 where decision = 'failed'",
        "update experiment set delta = 0.5 where decision = 'failed'",
        "update experiment set kind = null where decision = 'failed'",
        "update experiment set decision = 'keep' where decision = 'failed'",
        "update experiment set decision = 'failed' where decision = 'keep'",
        "update experiment set value = null where decision = 'keep'",
        "update experiment set kind = 'crash' where decision = 'keep'",
        "update experiment set decision = 'maybe'",
        "update experiment set decided_at = null",
        "update experiment set sequence = null",
        "update experiment set sequence = 1",
        "update experiment set evidence = 'heard'",
        "update experiment set value = 'low' where decision = 'keep'",
        "update experiment set blob = 'unknown'",
        "update run set value = null",
        "update run set value = 9e999 * 0",
        "update run set facts = '{'",
        "insert into experiment (number, title, reason, author, parent, blob, code,"
        " program, proposed_at, value) select 9, '', '', '', '', blob, '', '', 0, 0.1"
        " from source limit 1",
    ],
)
def test_sql_itself_refuses_a_failure_with_a_metric_and_other_contradictions(
    ledger, forgery
):
    keep(ledger, propose(ledger), 1.0)
    fail(ledger, propose(ledger, source="Y = 2\n"))
    before = list(ledger.load_rows())

    with pytest.raises(sqlite3.IntegrityError):
        ledger.db.execute(forgery)

    assert list(Ledger(ledger.path).load_rows()) == before


def test_a_score_that_is_not_a_number_leaves_no_trace(ledger):
    proposal = propose(ledger)

    with pytest.raises(sqlite3.IntegrityError):
        keep(ledger, proposal, math.nan)

    assert ledger.load_open_proposals() == (proposal,)
    assert ledger.count_experiments()["runs"] == 0
    assert keep(ledger, proposal, 1.0).number == 1


def test_deciding_twice_is_an_error_and_changes_nothing(ledger):
    proposal = propose(ledger)
    row = keep(ledger, proposal, 1.0)

    for again in (keep, discard):
        with pytest.raises(AssertionError, match="decided twice"):
            again(ledger, proposal, 0.5)
    with pytest.raises(AssertionError, match="decided twice"):
        fail(ledger, proposal)

    assert list(Ledger(ledger.path).load_rows()) == [row]
    assert ledger.count_experiments()["runs"] == 1


def test_deciding_what_was_never_proposed_is_an_error(ledger):
    stranger = Proposal(99, "t", "X = 1\n", "", "search")

    with pytest.raises(AssertionError):
        fail(ledger, stranger)


def test_what_git_has_to_learn_is_marked_until_it_has(ledger):
    first, second, third = (propose(ledger, source=f"X = {n}\n") for n in range(3))
    keep(ledger, first, 1.0)
    discard(ledger, third, 2.0)
    refused = Verdict("failed", "refused: no", Failure(second, "refused", "no"))
    ledger.record_verdict(refused, commit=None, at=1.0)

    assert [row.number for row in ledger.load_unpublished_rows()] == [1, 3]

    ledger.mark_verdict_published(1)
    assert [row.number for row in ledger.load_unpublished_rows()] == [3]


def test_a_repeat_is_recognised_within_its_series_and_not_in_itself(ledger):
    first = propose(ledger)
    code = "code of X = 1\n"

    assert ledger.find_same_code(code, "parent", first.number) is None
    second = propose(ledger)
    assert ledger.find_same_code(code, "parent", second.number) == first.number
    assert ledger.find_same_code(code, "parent", None) == first.number
    assert ledger.find_same_code(code, "another parent", None) is None
    assert ledger.find_same_code("other code", "parent", None) is None

    keep(ledger, first, 1.0)
    fail(ledger, second, "duplicate")
    assert ledger.find_same_code(code, "another parent", None) == first.number
    ledger.begin_session("series-b", "{}", 8, "{}")
    assert ledger.find_same_code(code, "parent", None) is None


# -- reading ---------------------------------------------------------------------------


def test_rows_read_bit_by_bit_are_the_rows_read_afresh(ledger, path):
    rng, reader = random.Random(1), Ledger(path)
    waiting = [propose(ledger, source=f"X = {n}\n") for n in range(40)]
    rng.shuffle(waiting)
    for proposal in waiting:
        how = rng.choice((keep, discard, fail))
        row = how(ledger, proposal, *(() if how is fail else (rng.random(),)))
        if row.number % 7 == 0:
            ledger.rename_verdict_commit(row.number, f"renamed {row.number}")
        if rng.random() < 0.5:
            reader.load_rows()

    fresh = list(Ledger(path).load_rows())
    assert list(ledger.load_rows()) == fresh
    assert [row.number for row in reader.load_rows()] == [row.number for row in fresh]
    assert [row.number for row in fresh] == [proposal.number for proposal in waiting]
    for row in fresh:
        assert ledger.load_row(row.number) == row
    assert ledger.load_last_rows(5) == tuple(fresh[-5:])
    assert ledger.load_last_rows(1000) == tuple(fresh)


def test_a_row_has_one_column_per_field_also_without_runs(ledger):
    keep(ledger, propose(ledger), 1.0, 3.0)
    fail(ledger, propose(ledger, source="Y = 2\n"))

    kept, failed = ledger.load_rows()

    assert (kept.runs, kept.value) == (2, 2.0)
    assert (failed.runs, failed.values, failed.seconds) == (0, (), 0.0)


def test_a_row_is_filled_by_name_in_any_order_of_columns(ledger):
    row = keep(ledger, propose(ledger), 1.0, 2.0)
    one = f"{row_query.ROW_QUERY} group by e.number"
    names = [column[0] for column in ledger.db.execute(one).description]
    reordered = ", ".join(f'"{name}"' for name in reversed(names))

    found = row_query.rows_from_cursor(
        ledger.db.execute(f"select {reordered} from ({one})")
    )

    assert list(found) == [(row, 1)]


def test_an_unknown_experiment_is_no_row(ledger):
    propose(ledger)

    assert ledger.load_row(1) is None  # it has no verdict yet
    assert ledger.load_row(99) is None
    assert ledger.load_last_rows(3) == ()
    assert ledger.find_last_keep() is None
    assert ledger.find_last_series() == ""


def test_the_champion_is_the_last_keep_of_its_series_with_all_its_runs(ledger):
    assert ledger.champion is None
    first = propose(ledger)
    keep(ledger, first, 1.0, 1.2)
    discard(ledger, propose(ledger, source="Y = 2\n"), 0.1)

    assert ledger.champion == Champion(1, compute_blob_id("X = 1\n"), (1.0, 1.2))

    ledger.begin_session("series-b", "{}", 8, "{}")
    assert ledger.champion is None
    assert ledger.find_last_keep().number == 1
    keep(ledger, propose(ledger, source="Z = 3\n"), 9.0)
    assert ledger.champion.number == 3
    assert ledger.find_first_keep("series-a") == 1
    assert ledger.find_first_keep("series-b") == 3

    ledger.begin_session("series-a", "{}", 8, "{}")
    assert ledger.champion.number == 1


def test_a_view_that_opened_no_series_sees_the_last_one(ledger, path):
    keep(ledger, propose(ledger), 1.0)

    view = Ledger(path)

    assert view.find_last_series() == "series-a"
    assert view.champion.number == 1


def test_a_series_keeps_its_first_seed_and_facts(ledger):
    ledger.begin_session("series-a", '{"budget": "5 s"}', 99, "{}")

    assert ledger.base_seed == 7
    assert ledger.load_series_facts("series-a") == {"budget": "300 s"}
    assert ledger.load_series_facts("unknown") == {}


def test_a_series_nobody_seeded_has_the_same_seed_everywhere(tmp_path):
    seeds = set()
    for name in ("a", "b"):
        ledger = Ledger(tmp_path / name)
        ledger.begin_session("0123abcd", "{}", None, "{}")
        seeds.add(ledger.base_seed)

    (seed,) = seeds
    assert 0 <= seed < 2**31


def test_counts_are_of_verdicts_and_runs(ledger):
    keep(ledger, propose(ledger), 1.0, 1.1)
    discard(ledger, propose(ledger, source="Y = 2\n"), 2.0)
    fail(ledger, propose(ledger, source="Z = 3\n"))
    propose(ledger, source="W = 4\n")

    assert ledger.count_experiments() == {
        "experiments": 3,
        "kept": 0,
        "baselines": 1,
        "taken_back": 0,
        "discarded": 1,
        "unresolved": 0,
        "ended_early": 0,
        "failed": 1,
        "runs": 3,
        "claimed": 0,
    }


def test_a_source_is_kept_once_and_to_the_last_letter(ledger):
    source = "Δ = '\u2028'\r\n\x0c# no newline at the end"
    propose(ledger, source=source)
    propose(ledger, source=source)
    ledger.store_source("blob of program.md", "# Goal\n")

    assert ledger.load_source(compute_blob_id(source)) == source
    assert ledger.load_source("blob of program.md") == "# Goal\n"


# -- kill -9 ---------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from tests.test_ledger import Ledger, discard, fail, keep, propose
ledger = Ledger(Path(sys.argv[1]))
ledger.begin_session("series-a", "{}", 7, "{}")
print("writing", flush=True)
while True:
    proposal = propose(ledger, source=f"X = {time.time_ns()}\\n" * 200)
    how = (keep, discard, fail)[proposal.number % 3]
    row = how(ledger, proposal, *(() if how is fail else (1.0, 2.0)))
    if row.number % 2:
        ledger.mark_verdict_published(row.number)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_transactions_only(path):
    rng = random.Random(5)
    numbers = 0
    for _ in range(12):
        writer = subprocess.Popen(
            (sys.executable, "-c", WRITER, str(path)),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        )
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(rng.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        ledger = Ledger(path)
        ledger.require_intact()
        rows, waiting = ledger.load_rows(), ledger.load_open_proposals()
        everything = sorted([r.number for r in rows] + [p.number for p in waiting])
        assert everything == list(range(1, len(everything) + 1))
        for row in rows:
            assert row.runs == (0 if row.decision == "failed" else 2)
            assert row.value == (None if row.decision == "failed" else 1.5)
            assert ledger.load_source(row.blob).startswith("X = ")
        assert ledger.count_experiments()["runs"] == sum(row.runs for row in rows)
        sequences = ledger.db.execute(
            "select sequence from experiment where sequence > 0 order by 1"
        )
        assert [n for (n,) in sequences] == list(range(1, len(rows) + 1))
        assert len(everything) >= numbers
        numbers = len(everything)
        ledger.close()

    assert numbers > 12


def test_a_transaction_that_fails_is_rolled_back_whole(ledger):
    def interrupted():
        with ledger.transaction() as db:
            db.execute("insert into source values ('blob', x'00')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert not ledger.db.in_transaction
    assert ledger.db.execute("select count(*) from source").fetchone() == (0,)


def test_a_full_disk_is_said_to_be_one_and_loses_nothing(ledger):
    row = keep(ledger, propose(ledger), 1.0)
    (pages,) = ledger.db.execute("pragma page_count").fetchone()
    ledger.db.execute(f"pragma max_page_count = {pages}")

    noise = "".join(random.Random(1).choices("abcdefgh", k=200_000))

    with pytest.raises(sqlite3.OperationalError, match="full"):
        propose(ledger, source=noise)

    assert not ledger.db.in_transaction
    assert list(Ledger(ledger.path).load_rows()) == [row]


# -- files that are no ledger, or no more ----------------------------------------------


def complaint(call) -> str:
    with pytest.raises(LabError) as refused:
        call()
    said = str(refused.value)
    assert "\n" not in said
    assert "Next: " in said
    return said


@pytest.mark.parametrize(
    "content",
    [b"not a database at all", b"\0" * 4096, b"SQLite format 3\0" + b"x" * 5000],
)
def test_a_file_that_is_no_database_names_rebuild(path, content):
    path.write_bytes(content)

    said = complaint(lambda: Ledger(path))

    assert "autoresearch rebuild" in said
    assert str(path) in said


def filled(path, count=300):
    """A closed ledger of some pages, all in one file."""
    ledger = Ledger(path)
    ledger.begin_session("series-a", "{}", 7, "{}")
    for n in range(count):
        keep(ledger, propose(ledger, source=f"X = {n}\n"), 1.0)
    ledger.close()
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_ledger_damaged_anywhere_stops_the_next_run_and_names_rebuild(path, share):
    whole = filled(path)
    at = int(len(whole) * share) // 4096 * 4096
    path.write_bytes(whole[:at] + random.Random(1).randbytes(4096) + whole[at + 4096 :])

    said = complaint(lambda: Ledger(path).begin_session("series-a", "{}", 7, "{}"))

    assert "autoresearch rebuild" in said


def test_a_ledger_that_was_cut_short_stops_the_next_run_and_names_rebuild(path):
    whole = filled(path)
    path.write_bytes(whole[: len(whole) // 2])

    said = complaint(lambda: Ledger(path).begin_session("series-a", "{}", 7, "{}"))

    assert "autoresearch rebuild" in said


def test_a_folder_that_is_not_there_is_not_called_damage(tmp_path):
    said = complaint(lambda: Ledger(tmp_path / "none" / "ledger.db"))

    assert "rebuild" not in said


def test_a_ledger_that_another_program_holds_is_not_called_damage(path, monkeypatch):
    plain = sqlite3.connect
    other = plain(path)
    other.execute("create table t (x)")
    other.execute("begin exclusive")
    monkeypatch.setattr(
        sqlite3, "connect", lambda *a, **more: plain(*a, **(more | {"timeout": 0.1}))
    )

    said = complaint(lambda: Ledger(path))

    assert "locked" in said
    assert "rebuild" not in said
    other.close()


# -- migrations ------------------------------------------------------------------------


def test_a_migration_runs_once_however_often_a_ledger_is_opened(path, monkeypatch):
    filled(path, count=1)
    twice = ("alter table run add column note text;",)
    migrations = schema.load_migrations() + twice
    monkeypatch.setattr(schema, "load_migrations", lambda: migrations)

    for _ in range(3):
        ledger = Ledger(path)
        columns = ledger.db.execute("pragma table_info(run)").fetchall()
        assert [column[1] for column in columns].count("note") == 1
        version = ledger.db.execute("pragma user_version").fetchone()
        assert version == (len(migrations),)
        ledger.close()


def test_migrations_are_files_numbered_from_one_without_a_gap():
    folder = Path(schema.__file__).parent
    numbers = [int(file.name[:4]) for file in sorted(folder.glob("*.sql"))]

    assert numbers == list(range(1, len(schema.load_migrations()) + 1))


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(path, monkeypatch):
    before = filled(path, count=1)
    broken = ("create table half (x); create table half (x);",)
    migrations = schema.load_migrations() + broken
    monkeypatch.setattr(schema, "load_migrations", lambda: migrations)

    complaint(lambda: Ledger(path))

    monkeypatch.undo()
    assert len(Ledger(path).load_rows()) == 1
    assert path.read_bytes()[:100] == before[:100]


def test_many_who_open_a_fresh_ledger_at_once_all_find_it_in_order(path):
    code = "import sys; from pathlib import Path; from autoresearch.records.ledger import Ledger"
    code += "; sys.stdin.readline(); print(Ledger(Path(sys.argv[1])).count_experiments()['runs'])"
    openers = [
        subprocess.Popen(
            (sys.executable, "-c", code, str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    for opener in openers:
        opener.stdin.write(b"go\n")
        opener.stdin.flush()

    for opener in openers:
        said, complained = opener.communicate(timeout=60)
        assert (said, complained) == (b"0\n", b"")


def test_a_ledger_of_a_newer_format_is_refused_and_left_alone(path):
    filled(path, count=1)
    db = sqlite3.connect(path)
    db.execute("pragma user_version = 99")
    db.close()

    said = complaint(lambda: Ledger(path))

    assert "newer AutoResearch (format 99" in said
    assert "upgrade" in said
    assert sqlite3.connect(path).execute("pragma user_version").fetchone() == (99,)


# -- ten thousand experiments ----------------------------------------------------------


def test_ten_thousand_experiments_are_read_and_added_to_quickly(ledger, path):
    with ledger.transaction() as db:
        db.execute("insert into source values ('blob', x'00')")
        db.executemany(
            "insert into experiment (number, title, reason, author, parent, blob, code,"
            " program, proposed_at, sequence, series, decision, why, value, delta,"
            " against, decided_at, commit_name, in_git) values (?, 'MATRIX_LR 0.04 ->"
            " 0.05', '', 'search', 'p', 'blob', 'code' || ?, '', 0, ?, 'series-a', ?,"
            " 'worse by 0.001', 1.0, 0.001, 0, 0, 'c', 1)",
            [(n, n, n + 1, ("keep", "discard")[n % 9 > 0]) for n in range(10_000)],
        )
        db.executemany(
            "insert into run (experiment, series, seed, value, error, seconds,"
            " startup_seconds, evaluation_seconds, memory_gb, facts, log)"
            " values (?, 'series-a', 1, 1.0, 0, 300, 5, 9, 2.5, ?, 'log')",
            [(n, '[["depth", 4], ["width", 384]]') for n in range(10_000)],
        )
    fresh = Ledger(path)
    took = {}

    def timed(name, call):
        begun = time.perf_counter()
        found = call()
        took[name] = 1000 * (time.perf_counter() - begun)
        return found

    assert len(timed("rows", fresh.load_rows)) == 10_000
    timed("rows again", fresh.load_rows)
    timed("counts", fresh.count_experiments)
    timed("champion", lambda: fresh.champion)
    timed("last 20", lambda: fresh.load_last_rows(20))
    timed("one row", lambda: fresh.load_row(5000))
    timed("first keep", lambda: fresh.find_first_keep("series-a"))
    timed("open", fresh.load_open_proposals)
    timed("not in git", fresh.load_unpublished_rows)
    timed("same code", lambda: fresh.find_same_code("code77", "p", None))
    timed("whole", fresh.require_intact)
    fresh.series = "series-a"
    proposal = timed("admit", lambda: propose(fresh))
    timed("decide", lambda: keep(fresh, proposal, 1.0))

    assert proposal.number == 10_000
    assert len(fresh.load_rows()) == 10_001
    print(*(f"{name} {ms:.1f} ms" for name, ms in took.items()), sep="\n")


# -- results.tsv -----------------------------------------------------------------------


def table(path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_table_has_a_line_for_all_that_ran_and_blanks_for_what_is_missing(
    ledger, tmp_path
):
    path = tmp_path / "results.tsv"
    keep(ledger, propose(ledger), 1.23456789)
    fail(ledger, propose(ledger, source="Y = 2\n"), "out of memory")
    fail(ledger, propose(ledger, source="Z = 3\n"), "duplicate")
    fail(ledger, propose(ledger, source="W = 4\n"), "refused")
    results_tsv.write_results(path, "val_bpb", ledger.load_rows())

    kept, failed = table(path)

    assert list(kept) == [
        *("commit", "val_bpb", "memory_gb", "status", "description"),
        *("experiment", "runs", "kind", "delta", "delta_low", "delta_high"),
        "proposed_by",
    ]
    assert (kept["commit"], kept["val_bpb"], kept["status"]) == (
        "commit ",
        "1.234568",
        "keep",
    )
    assert (failed["val_bpb"], failed["delta"], failed["memory_gb"]) == ("", "", "")
    assert (failed["status"], failed["kind"]) == ("crash", "out of memory")


def test_lines_added_one_by_one_make_the_table_written_at_once(ledger, tmp_path):
    one_by_one, at_once = tmp_path / "a.tsv", tmp_path / "b.tsv"
    results_tsv.write_results(one_by_one, "val_bpb", [])
    for n in range(9):
        proposal = propose(ledger, source=f"X = {n}\n", title=f"Δ {n}")
        how = (keep, discard, fail)[n % 3]
        row = how(ledger, proposal, *(() if how is fail else (1.0,)))
        results_tsv.append_result(one_by_one, row)
    results_tsv.append_result(
        one_by_one, fail(ledger, propose(ledger, source="R"), "refused")
    )
    results_tsv.write_results(at_once, "val_bpb", ledger.load_rows())

    assert one_by_one.read_bytes() == at_once.read_bytes()


def test_a_title_cannot_break_out_of_its_cell(ledger, tmp_path):
    path = tmp_path / "results.tsv"
    evil = "a\tkeep\n0000000\t0.1\t\x1b[31m\u2028\u202e"
    keep(ledger, propose(ledger, title=evil, author="human:x\ty"), 1.0)
    results_tsv.write_results(path, "val_bpb", ledger.load_rows())

    (line,) = table(path)

    assert line["description"] == "a keep 0000000 0.1"
    assert line["proposed_by"] == "human:x y"
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, ""), (0.0, "0.0000"), (1.09123, "1.0912"), (-0.5, "-0.5000")),
        *((0.000123, "0.000123"), (12_345_678.0, "1.23e+07")),
    ],
)
def test_a_score_is_shown_with_as_many_digits_as_it_needs(value, shown):
    assert format_score(value) == shown


@pytest.mark.parametrize(
    ("delta", "shown"),
    [(None, ""), (-0.0012, "-0.0012"), (0.00001, "+1e-05"), (0.5, "+0.5000")],
)
def test_a_change_always_shows_its_sign(delta, shown):
    assert format_delta(delta) == shown


def test_a_row_is_frozen(ledger):
    row = keep(ledger, propose(ledger), 1.0)

    assert replace(row) == row
    with pytest.raises(AttributeError):
        row.value = 0.0
