"""A lab that version 0.1 of 30 November 2026 made goes on: ledger format 6, flat imports.

`old_lab/` holds its git repository as a bundle (all refs) and its ledger, as
`autoresearch run` left them after six experiments on lab `line`.
"""

import gzip
import json
import sqlite3
from pathlib import Path

import pytest

from autoresearch.git import Repository
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger
from tests.nights import command, rate, script

OLD = Path(__file__).parent / "old_lab"
DECISIONS = ["keep", "keep", "discard", "discard", "unresolved", "discard", "failed"]


@pytest.fixture
def old_lab(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    git = Repository(folder).run_git
    git("init", "-q", "-b", "main")
    # Remotes are switched off in our own git; a bundle is unpacked without one.
    git("bundle", "unbundle", str(OLD / "lab.bundle"))
    for line in git("bundle", "list-heads", str(OLD / "lab.bundle")).splitlines():
        commit, name = line.split()
        if name.startswith("refs/"):
            git("update-ref", name, commit)
    branch = next(
        line.split()[1]
        for line in git("bundle", "list-heads", str(OLD / "lab.bundle")).splitlines()
        if line.split()[1].startswith("refs/heads/")
    )
    git("symbolic-ref", "HEAD", branch)
    git("reset", "-q", "--hard", "HEAD")
    (folder / ".autoresearch").mkdir()
    packed = (OLD / "ledger.db.gz").read_bytes()
    (folder / ".autoresearch" / "ledger.db").write_bytes(gzip.decompress(packed))
    return Lab.find(folder)


def read_chain(path) -> list:
    with sqlite3.connect(path) as db:
        return db.execute("select kind, ref, digest, link from chain").fetchall()


def test_its_rows_are_read_with_the_decision_that_their_reasons_told(old_lab):
    rows = Ledger(old_lab.folder / ".autoresearch" / "ledger.db").load_rows()

    assert [row.decision for row in rows] == DECISIONS
    assert rows[4].status == "discard"
    assert rows[4].why.startswith("unresolved: gain 0.004003")


def test_its_hashes_are_untouched(old_lab):
    path = old_lab.folder / ".autoresearch" / "ledger.db"
    before = read_chain(path)

    Ledger(path).close()

    assert read_chain(path) == before
    done = command(old_lab, "verify-ledger", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["problems"] == []


def test_it_is_logged_shown_and_reported(old_lab):
    log = command(old_lab, "log", "--json")
    shown = command(old_lab, "show", "4")
    report = command(old_lab, "report", "--json")

    assert [json.loads(line)["verdict"] for line in log.stdout.splitlines()][-3:] == [
        "unresolved",
        "discard",
        "failed",
    ]
    assert "unresolved" in shown.stdout
    assert json.loads(report.stdout)["counts"]["unresolved"] == 1


def test_a_night_goes_on_in_it(old_lab):
    spec = script(old_lab, rate(0.021))

    done = command(old_lab, "run", "--experiments", "1", "--proposer", spec)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "experiment 8" in done.stdout or " 8 " in done.stdout
    assert command(old_lab, "verify-ledger").returncode == 0


def test_it_is_rebuilt_from_git(old_lab):
    path = old_lab.folder / ".autoresearch" / "ledger.db"
    before = {row.number: row.values for row in Ledger(path).load_rows()}
    path.unlink()

    done = command(old_lab, "rebuild")

    assert done.returncode == 0, done.stderr
    rows = Ledger(path).load_rows()
    assert [row.decision for row in rows] == DECISIONS[: len(rows)]
    for row in rows:  # runs of the champion after its verdict are in the ledger only
        assert row.values == before[row.number][: len(row.values)]
