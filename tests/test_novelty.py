"""Near-duplicates: refused before they train, whoever proposes them."""

import pytest

from autoresearch.records.queries import describe_near_duplicate
from tests import nights
from tests.test_context import SOURCE, night


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("RATE = 0.200", "RATE = 0.202", True),
        ("RATE = 0.2", "RATE = 2e-1", True),
        ("RATE = 0.2", "RATE = 0.21", False),
        ("RATE = 0.98", "RATE = 0.985", False),
        ("RATE = 0.1\nDEPTH = 5", "RATE = 0.1\nDEPTH = 6", False),
        ("RATE = 0.1\nx = f(1)", "RATE = 0.1\nx = f( 1 )  # again", True),
        ("RATE = 0.1\nx = f(1)", "RATE = 0.1\nx = f(2)", False),
    ],
)
def test_next_to_nothing_is_a_repeat_and_more_is_not(tmp_path, first, second, same):
    line = "RATE = 0.1  # 0.001 .. 1, log"
    ledger = night(tmp_path / "l.db", ("one", SOURCE.replace(line, first), 1.5))

    found = describe_near_duplicate(
        ledger, SOURCE.replace(line, second), ledger.champion.blob
    )

    assert found == ("almost the same as experiment 1" if same else "")


def test_what_was_tried_in_another_series_may_be_tried_again(tmp_path):
    line = "RATE = 0.1  # 0.001 .. 1, log"
    ledger = night(tmp_path / "l.db", ("one", SOURCE.replace(line, "RATE = 0.2"), 1.5))
    blob = ledger.champion.blob
    ledger.begin_session("another budget", "{}", 0, "{}")

    assert (
        describe_near_duplicate(ledger, SOURCE.replace(line, "RATE = 0.202"), blob)
        == ""
    )


def test_a_near_repeat_of_a_person_costs_no_run(tmp_path):
    lab = nights.line_lab(tmp_path / "lab")

    worse = (0.0002, 0.000202, 0.0003)
    rows = nights.run(lab, *(nights.rate(value) for value in worse))

    assert [row.kind for row in rows[1:]] == [None, "duplicate", None]
    assert [row.runs == 0 for row in rows] == [False, False, True, False]
