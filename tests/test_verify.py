"""The chain of rows: what was changed afterwards is found and named."""

import contextlib
import json
import sqlite3

import pytest

from autoresearch.commands import verify_ledger
from autoresearch.git import Repository
from autoresearch.records import hash_chain
from autoresearch.records.ledger import Ledger
from autoresearch.records.schema import load_migrations
from tests.nights import command, line_lab, rate, run


@pytest.fixture
def lab(tmp_path):
    """A night of a baseline, a keep, a discard and a failure."""
    lab = line_lab(tmp_path / "lab")
    run(lab, rate(0.02), rate(0.0001), rate(0.03), rate(1e300))
    return lab


def verified(lab, code):
    done = command(lab, "verify-ledger", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def edit(lab, *statements):
    """Edit the file by hand."""
    ledger = Ledger(lab.ledger_path)
    ledger.db.execute("pragma foreign_keys = off")
    for statement in statements:
        assert ledger.db.execute(statement).rowcount != 0
    ledger.close()


def of_the_first_version(path):
    """The same ledger as the first version would have written it."""
    old = path.with_name("old.db")
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.executescript(load_migrations()[0])
        db.execute("attach ? as now", (str(path),))
        for table in ("session", "series", "source", "experiment", "run"):
            columns = ", ".join(c[1] for c in db.execute(f"pragma table_info({table})"))
            db.execute(f"insert into {table} select {columns} from now.{table}")
        db.execute("pragma user_version = 1")
    old.replace(path)


def test_an_honest_ledger_is_whole_also_after_another_night_and_a_rebuild(lab):
    first = verified(lab, 0)
    run(lab, rate(0.05))
    second = verified(lab, 0)
    command(lab, "rebuild")
    third = verified(lab, 0)

    assert set(first) == {
        *("whole", "entries", "adopted", "head", "commits", "problems", "again"),
    }
    assert first["whole"]
    assert first["adopted"] == 0
    assert second["entries"] > first["entries"]
    assert second["head"] != first["head"]
    assert third["adopted"] == third["entries"] > 0


def test_a_score_of_many_digits_is_the_same_in_git_and_ledger(tmp_path):
    lab = line_lab(tmp_path / "large")
    large = lab.read_file("prepare.py").replace(
        "/ len(answers)", "/ len(answers) * 1e9 / 7"
    )
    lab.file_path("prepare.py").write_text(large)
    who = ("-c", "user.name=t", "-c", "user.email=t")
    Repository(lab.folder).run_git(*who, "commit", "-qam", "large scores")

    rows = run(lab, rate(0.02))

    assert rows[0].value > 1e6
    assert verified(lab, 0)["problems"] == []


def test_commits_of_older_versions_have_six_decimals_and_agree():
    assert verify_ledger.has_matching_scores(
        ["3613121710.025316"], [3613121710.0253163]
    )
    assert verify_ledger.has_matching_scores(["0.500000"], [0.5, 0.25])
    assert not verify_ledger.has_matching_scores(["0.500001"], [0.5])
    assert not verify_ledger.has_matching_scores(["0.5", "0.5"], [0.5])
    assert not verify_ledger.has_matching_scores([], [0.5])


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("update run set value = value - 0.001 where id = 2", "run 2 was changed"),
        ("update experiment set why = 'x' where number = 1", "experiment 1 was chang"),
        ("update experiment set decision = 'keep' where number = 2", "experiment 2"),
        ("delete from run where id = 2", "run 2 is gone"),
        ("update experiment set commit_name = 'f00' where number = 1", "the commit of"),
        ("update source set text = x'00'", "cannot be read"),
        (
            "delete from chain where position = 2",
            "entries 2 to 2 of the chain are gone",
        ),
        ("update chain set digest = 'x' where position = 3", "does not follow"),
        (
            "insert into run (id, experiment, series, seed, value, error, seconds,"
            " startup_seconds, evaluation_seconds, memory_gb, facts, log) select 99,"
            " experiment, series, seed, value, error, seconds, startup_seconds,"
            " evaluation_seconds, memory_gb, facts, log from run where id = 1",
            "run 99 is not in the chain",
        ),
    ],
)
def test_what_was_changed_afterwards_is_named(lab, statement, words):
    edit(lab, statement)

    assert words in " | ".join(verified(lab, 5)["problems"])


def test_rows_cut_off_with_their_entries_are_missed_by_git(lab):
    edit(
        lab,
        "delete from run where experiment = 3",
        "delete from chain where position >= (select min(position) from chain where"
        " kind = 'run' and ref = 4)",
        "delete from experiment where number >= 3",
    )

    assert "experiment 3 is in git" in " | ".join(verified(lab, 5)["problems"])


def test_a_ref_that_was_moved_is_found(lab):
    book = Repository(lab.folder)
    book.run_git("update-ref", "refs/autoresearch/1", book.find_commit(2))

    assert "refs/autoresearch/1 does not point to its" in " | ".join(
        verified(lab, 5)["problems"]
    )


def test_commits_anchor_the_chain(lab):
    message = Repository(lab.folder).run_git(
        "log", "-1", "--format=%B", "autoresearch/1"
    )
    ledger = Ledger(lab.ledger_path)

    link = message.split("Chain: ")[1].split()[0]

    assert link in hash_chain.load_links_before(ledger.db, 1)
    ledger.close()


def test_a_ledger_from_before_the_chain_is_adopted_once(lab):
    of_the_first_version(lab.ledger_path)

    found = verified(lab, 0)

    assert found["adopted"] == found["entries"] > 0


def test_an_experiment_can_be_measured_again(lab):
    done = command(lab, "verify-ledger", "--again", "1", "--json")

    again = json.loads(done.stdout)["again"]
    assert again["experiment"] == 1
    assert again["value"] == pytest.approx(again["recorded"][0], abs=0.5)
    assert command(lab, "verify-ledger", "--again", "99").returncode == 2
