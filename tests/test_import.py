"""Foreign results.tsv: claims that are kept apart, and nights decided again."""

import json
import random
from dataclasses import dataclass

import pytest

from autoresearch.commands import import_results, replay
from autoresearch.errors import LabError, NotReady
from autoresearch.policies.registry import load_policy
from autoresearch.records import hash_chain
from autoresearch.records.ledger import Ledger
from autoresearch.reporting import format, report_json, report_text
from tests.nights import command, line_lab, rate, run

HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
NIGHT = (
    "383abb4\t0.997900\t44.0\tkeep\tbaseline",
    "909dd59\t0.992819\t44.0\tkeep\thalve the batch",
    "4161af3\t1.005000\t44.0\tdiscard\twider",
    "0000000\t0.000000\t0.0\tcrash\tdouble the width (OOM)",
    "5efc7aa\t0.992900\t44.1\tdiscard\talmost",
    "bea057b\t0.991000\t44.2\tkeep\tlonger warmdown",
)


@dataclass
class Theirs:
    """A file of somebody else's."""

    path: object

    def write(self, *lines, head=HEAD):
        self.path.write_text("\n".join((head, *lines)) + "\n")
        return self.path


@pytest.fixture
def theirs(tmp_path):
    return Theirs(tmp_path / "theirs.tsv")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def lab(tmp_path):
    return line_lab(tmp_path / "lab")


def test_every_row_becomes_an_experiment_that_is_claimed(ledger, theirs):
    file = import_results.read_results_file(theirs.write(*NIGHT))
    numbers = import_results.insert_claims(ledger, file)
    rows = ledger.load_claimed_rows()

    assert numbers == [1, 2, 3, 4, 5, 6]
    assert [row.decision for row in rows] == [
        "keep", "keep", "discard", "failed", "discard", "keep",
    ]  # fmt: skip
    assert {row.evidence for row in rows} == {"claimed"}
    assert {row.series for row in rows} == {f"claimed:{file.digest[:8]}"}
    assert rows[3].value is None
    assert rows[3].kind == "crash"
    assert rows[5].value == 0.991
    assert rows[5].delta == pytest.approx(0.991 - 0.992819)
    assert rows[5].memory_gb == 44.2
    assert rows[5].why == "claimed: theirs.tsv line 7, commit bea057b"


def test_a_claim_is_never_champion_and_nobody_who_decides_sees_it(ledger, theirs):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )

    assert ledger.champion is None
    assert ledger.find_last_keep() is None
    assert ledger.find_last_series() == ""
    assert list(ledger.load_rows()) == []
    assert ledger.load_last_rows(5) == ()
    assert ledger.count_experiments()["experiments"] == 0
    assert ledger.count_experiments()["runs"] == 0
    assert ledger.count_experiments()["claimed"] == 6


def test_the_chain_of_rows_stays_whole_and_shows_a_claim_that_was_changed(
    ledger, theirs
):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )
    before = list(hash_chain.find_chain_problems(ledger.db))
    ledger.db.execute("update experiment set value = 0.9 where number = 2")

    assert before == []
    assert list(hash_chain.find_chain_problems(ledger.db)) == [
        "experiment 2 was changed after it was written"
    ]


def test_the_same_file_is_refused_the_second_time(ledger, theirs):
    path = theirs.write(*NIGHT)
    import_results.insert_claims(ledger, import_results.read_results_file(path))

    with pytest.raises(LabError, match="was imported before"):
        import_results.insert_claims(ledger, import_results.read_results_file(path))
    assert len(ledger.load_claimed_rows()) == 6


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("abc\t0.99\t44.0", "3 columns"),
        ("abc\t0.99\t44.0\tmaybe\tx", "status 'maybe'"),
        ("abc\tfast\t44.0\tkeep\tx", "score 'fast' is not a number"),
        ("abc\tnan\t44.0\tkeep\tx", "score 'nan' is not a number"),
        ("abc\t0.000000\t44.0\tkeep\tx", "a score of 0"),
        ("abc\t0.99\tlots\tkeep\tx", "memory_gb 'lots'"),
    ],
)
def test_odd_rows_are_left_out_and_named_by_their_line(theirs, line, says):
    file = import_results.read_results_file(theirs.write(NIGHT[0], line, "", NIGHT[1]))

    assert [claim.line for claim in file.claims] == [2, 5]
    (odd,) = file.skipped
    assert odd.line == 3
    assert says in odd.why


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a results.tsv"),
        (b"a,b,c\n", "not a results.tsv"),
        (HEAD.encode() + b"\n", "no readable row"),
        (HEAD.encode() + b"\nx\ty\n", "line 2: 2 columns"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"x" * (import_results.MAX_FILE_BYTES + 1), "larger than 4 MB"),
    ],
)
def test_what_is_no_results_tsv_is_refused(tmp_path, body, says):
    path = tmp_path / "odd.tsv"
    path.write_bytes(body)

    with pytest.raises(LabError, match=says):
        import_results.read_results_file(path)


def test_a_file_that_is_not_there_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(LabError, match="cannot be read"):
        import_results.read_results_file(tmp_path / "nowhere.tsv")


def test_hostile_words_lose_their_escapes_and_their_length(ledger, theirs):
    line = f"\x1b[31mabc\t0.9\t1.0\tkeep\t\x1b[2J<script>{'x' * 1000}"
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(line))
    )

    (row,) = ledger.load_claimed_rows()
    assert "\x1b" not in row.title + row.why
    assert len(row.title) <= import_results.MAX_TEXT_CHARACTERS


def test_our_own_results_tsv_with_its_further_columns_can_be_imported(lab, tmp_path):
    run(lab, rate(0.02), rate(0.0001))
    (tmp_path / "ours.tsv").write_bytes(lab.results_path.read_bytes())

    file = import_results.read_results_file(tmp_path / "ours.tsv")

    assert len(file.claims) == 3
    assert file.metric == "mse"
    assert file.skipped == ()


# -- in a lab --------------------------------------------------------------------------


def test_a_night_with_claims_goes_on_as_if_they_were_not_there(lab, theirs):
    path = str(theirs.write(*NIGHT))
    first = command(lab, "import", path, "--json")
    rows = run(lab, rate(0.02), rate(0.0001))
    again = command(lab, "import", path)
    verified = json.loads(command(lab, "verify-ledger", "--json").stdout)

    assert json.loads(first.stdout)["experiments"] == [1, 2, 3, 4, 5, 6]
    assert [row.number for row in rows] == [0, 7, 8]
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "was imported before" in again.stderr
    assert verified["whole"], verified["problems"]
    assert "import" not in lab.results_path.read_text()


def test_every_view_marks_a_claim_as_claimed(lab, theirs):
    run(lab, rate(0.02))
    path = theirs.write(*NIGHT)
    said = command(lab, "import", str(path)).stdout
    log = command(lab, "log").stdout
    status = command(lab, "status").stdout
    page = command(lab, "report").stdout
    number = json.loads(command(lab, "log", "--json").stdout.splitlines()[0])
    shown = command(lab, "show", str(number["experiment"])).stdout

    assert "in the ledger only" in said
    assert "the file measures 'val_bpb', this lab 'mse'" in said
    assert log.count(" claimed ") == 6
    assert "6 more were imported, not measured here" in status
    assert "2 experiments in" in status
    assert "claimed  6 imported experiments" in page
    assert (number["verdict"], number["evidence"]) == ("claimed", "claimed")
    assert "not measured here" in shown


def test_import_waits_for_no_night(lab, theirs):
    with lab.hold_lock():
        done = command(lab, "import", str(theirs.write(*NIGHT)))

    assert done.returncode == 2
    assert "in use" in done.stderr


def test_a_rebuilt_ledger_takes_the_file_once_more(lab, theirs):
    run(lab, rate(0.02))
    path = str(theirs.write(*NIGHT))
    command(lab, "import", path)
    rebuilt = command(lab, "rebuild").stdout
    after = command(lab, "import", path)

    assert "2 experiments restored from git" in rebuilt
    assert after.returncode == 0, after.stderr


def test_the_report_counts_no_claim(lab, theirs, ledger):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )
    built = report_text.build_report(
        ledger, metric="mse", lab_name="lab", facts={}, notices=()
    )  # fmt: skip

    assert report_json.report_to_json(built)["counts"]["experiments"] == 0
    assert report_json.report_to_json(built)["counts"]["claimed"] == 6
    assert any("not measured here" in line for line in report_text.list_unknowns(built))


# -- a night decided again -------------------------------------------------------------


def policy(name):
    return load_policy(name, lower_is_better=True, gain_per_20_added_lines=0.001)


def test_greedy_says_of_a_greedy_night_what_was_recorded(ledger, theirs):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )

    found = replay.replay(ledger, policy("greedy"), "greedy", None)

    assert found.claimed
    assert (found.experiments, found.runs, found.without_score) == (5, 5, 1)
    assert found.recorded == {"keep": 3, "discard": 2, "unresolved": 0}
    assert found.changed == ()
    assert found.missing == 0


def test_one_run_each_resolves_nothing_for_who_knows_noise(ledger, theirs):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )

    found = replay.replay(ledger, policy("noise-aware"), "noise-aware", "claimed:")
    lines = replay.format_replay(found)

    assert found.replayed["keep"] == 1  # the baseline
    assert found.missing > 0
    assert found.recorded["keep"] == 3
    assert {one.replayed for one in found.changed} == {"unresolved"}
    assert any("(lacks a run)" in line for line in lines)
    assert "claimed by others" in lines[0]


def test_a_policy_that_knows_the_noise_keeps_what_stands_out_of_it(ledger, theirs):
    rng = random.Random(1)
    lines = [f"b\t{rng.gauss(1, 1e-4):.6f}\t1.0\tkeep\tbaseline"]
    lines += [f"c{n}\t{rng.gauss(1.01, 1e-4):.6f}\t1.0\tdiscard\tno" for n in range(9)]
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*lines))
    )

    found = replay.replay(ledger, policy("noise-aware"), "noise-aware", None)

    assert found.replayed["keep"] == 1
    assert found.changed == ()


def test_a_series_is_chosen_by_how_its_name_begins(ledger, theirs):
    with pytest.raises(NotReady, match="there are no verdicts"):
        replay.replay(ledger, policy("greedy"), "greedy", None)
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )

    with pytest.raises(LabError, match="matches 0 series"):
        replay.replay(ledger, policy("greedy"), "greedy", "nothing-like-it")


def test_replay_is_a_command_with_json(lab):
    rows = run(lab, rate(0.02), rate(0.0001), {"title": "boom", "source": "1/0\n"})

    found = json.loads(command(lab, "replay", "--policy", "greedy", "--json").stdout)
    said = command(lab, "replay").stdout
    wrong = command(lab, "replay", "--policy", "vibes")

    assert set(found) == {
        "series", "policy", "claimed", "experiments", "runs", "without_score",
        "recorded", "replayed", "missing", "changed",
    }  # fmt: skip
    assert found["experiments"] == sum(bool(row.values) for row in rows)
    assert found["without_score"] == 1
    assert "verdicts change" in said
    assert wrong.returncode == 2
    assert "the policies are" in wrong.stderr


def test_replaying_changes_nothing_in_the_ledger(ledger, theirs):
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*NIGHT))
    )
    before = ledger.chain_head
    replay.replay(ledger, policy("islands"), "islands", None)

    assert ledger.chain_head == before
    assert len(format.load_log_rows(ledger)) == 6


def test_a_replay_compares_scores_without_the_luck_of_their_seeds(ledger, theirs):
    """The second seed costs everybody half a bit: no candidate is to blame for that."""
    lines = [
        f"c\t{value}\t1.0\t{status}\tx"
        for value, status in ((1.17, "keep"), (2.17, "discard"), (1.49, "discard"))
    ]
    import_results.insert_claims(
        ledger, import_results.read_results_file(theirs.write(*lines))
    )
    (series,) = {row.series for row in ledger.load_claimed_rows()}
    ledger.db.execute("delete from run")
    runs = {1: (1.0, 1.5, 1.01), 2: (2.0, 2.51, 2.0)}
    told = [(n, seed, v) for n, of in runs.items() for seed, v in enumerate(of, 1)]
    for number, seed, value in (*told, (3, 2, 1.45)):
        ledger.db.execute(
            "insert into run (experiment, series, seed, value, error, seconds,"
            " startup_seconds, evaluation_seconds, memory_gb, facts, log)"
            " values (?, ?, ?, ?, 0, 0, 0, 0, 1.0, '[]', '')",
            (number, series, seed, value),
        )

    found = replay.replay(ledger, policy("greedy"), "greedy", None)

    assert [one.replayed for one in found.changed] == ["keep"]
