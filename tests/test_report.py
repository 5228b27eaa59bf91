"""The morning report: counts that agree, nothing invented, nothing that escapes."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoresearch import morning, report
from autoresearch.experiment import Candidate, Failure, Proposal, Run, Score, Verdict
from autoresearch.lab import git_blob
from autoresearch.ledger import Ledger

HOSTILE = (
    "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202egnp.exe & 'quoted' \"twice\""
)


class Night:
    """A real ledger, filled by hand."""

    def __init__(self, path, *, lower_is_better=True):
        self.ledger = Ledger(path, lower_is_better=lower_is_better)
        self.ledger.begin(
            "s1", '{"device": "a <b>fast</b> one", "cage": "none"}', 0, "{}"
        )

    def add(self, title, value=None, kind="crash", keep=False, source=None, reason=""):
        champion = self.ledger.champion
        source = source or f"X = {title!r}\n"
        number = None if champion else 0
        proposal = Proposal(
            number, title, source, champion.blob if champion else "", "search", reason
        )
        proposal = self.ledger.admit(proposal, git_blob(source), source)
        if value is None:
            failure = Failure(proposal, kind, title)
            verdict = Verdict("failed", f"{kind}: {title}", failure, champion)
        else:
            run = Run(
                Candidate(proposal, "b"),
                0,
                60.0,
                3.0,
                1.5,
                Path("w"),
                (("depth", title),),
                Path("l"),
            )
            verdict = Verdict(
                "keep" if keep else "discard",
                "why",
                (Score(run, value, 0.0, 5.0),),
                champion,
            )
        self.ledger.decide(
            verdict, commit=None, at=1000.0 + 70 * len(self.ledger.rows())
        )

    def report(self, **more):
        settings = {
            "metric": "val_bpb",
            "lab_name": "lab",
            "facts": self.ledger.series_facts("s1"),
            "notices": (),
        }
        return morning.build(self.ledger, **{**settings, **more})


class Links(HTMLParser):
    """What a page asks for, and which tags it has."""

    def __init__(self):
        super().__init__()
        self.asked, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.asked += [v for k, v in attributes if k in ("src", "href", "xlink:href")]


@pytest.fixture
def night(tmp_path):
    night = Night(tmp_path / "ledger.db")
    night.add("baseline", 1.1, keep=True)
    night.add("better", 1.0, keep=True, source="X = 1\nY = 2\n", reason="because")
    night.add("worse", 1.2)
    night.add("wild", 50.0)
    night.add("boom", None)
    night.add("no", None, kind="refused")
    night.add(HOSTILE, 0.9, keep=True, source=f"# {HOSTILE}\nX = 3\n", reason=HOSTILE)
    return night


def test_the_headline_states_what_was_measured_and_no_interval(night):
    lines = "\n".join(morning.headline(night.report()))

    assert "val_bpb  1.1000 -> 0.9000   gain 0.2000" in lines
    assert "noise is not measured" in lines
    assert (
        "7 experiments in 5 runs: 2 kept, 1 to begin with, 2 discarded, 2 failed"
        in lines
    )
    assert "±" not in lines


def test_a_higher_metric_can_be_the_better_one(tmp_path):
    night = Night(tmp_path / "ledger.db", lower_is_better=False)
    night.add("baseline", 0.5, keep=True)
    night.add("better", 0.7, keep=True)

    built = night.report(metric="accuracy")

    assert built.gain == pytest.approx(0.2)
    assert "higher is better" in report.html(built)


def test_the_page_asks_nobody_for_anything_and_runs_no_script(night):
    page = Links()
    page.feed(report.html(night.report()))

    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.asked)


def test_hostile_text_is_shown_and_obeyed_by_nobody(night):
    page = report.html(night.report())

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "<b>fast</b>" not in page
    assert "\x1b" not in "\n".join(morning.headline(night.report()))


def test_a_failure_has_no_number_anywhere(night):
    page = report.html(night.report())

    (row,) = re.findall(
        r"<tr class=failed><td class=num>4<td>.*?(?=<tr|</tbody)", page, re.S
    )
    assert re.findall(r"<td class=num>([^<]*)", row)[1:] == [""] * 7


def test_kept_changes_come_with_their_diff_and_reason(night):
    page = report.html(night.report())

    assert "<span class=add>+Y = 2</span>" in page
    assert "because" in page
    assert "from the baseline to the champion" in page


def test_the_plot_has_every_experiment_and_says_what_it_clips(night):
    page = report.html(night.report())
    plot = page[page.index("<svg") : page.index("</svg>")]

    assert plot.count("<circle") == 4
    assert plot.count("<line class=failed") == 2
    assert plot.count("<polygon") == 1
    assert "1 beyond the scale" in plot


def test_an_empty_ledger_and_a_lone_baseline_make_a_sane_page(tmp_path):
    night = Night(tmp_path / "ledger.db")
    empty = report.html(night.report())
    night.add("baseline", 1.1, keep=True)
    lone = report.html(night.report())

    assert "Nothing was measured yet" in empty
    assert "1.1000 → 1.1000" in lone
    assert "nothing kept yet" in "\n".join(morning.headline(night.report()))


def test_ten_thousand_experiments_make_a_page_that_still_loads(night):
    rows = night.ledger.rows()
    many = tuple(replace(rows[2], number=n) for n in range(10_000))
    built = replace(night.report(), rows=(*rows, *many))

    page = report.html(built)

    assert len(page) < 8_000_000
    assert page.count("<circle") < 4000
