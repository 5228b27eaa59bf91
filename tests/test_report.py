"""The morning report: counts that agree, nothing invented, nothing that escapes."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autoresearch.experiment import (
    Candidate,
    Failure,
    Proposal,
    PruneDecision,
    Run,
    Score,
    Verdict,
)
from autoresearch.git import compute_blob_id
from autoresearch.records import results_tsv
from autoresearch.records.ledger import Ledger
from autoresearch.reporting import report_html, report_json, report_text
from tests.nights import command, line_lab, rate, run

HOSTILE = (
    "<script>alert(1)</script> \x1b[31mred\x1b[0m \u202egnp.exe & 'quoted' \"twice\""
)


class Night:
    """A real ledger, filled by hand."""

    def __init__(self, path, *, lower_is_better=True):
        self.ledger = Ledger(path, lower_is_better=lower_is_better)
        self.ledger.begin_session(
            "s1", '{"device": "a <b>fast</b> one", "cage": "none"}', 0, "{}"
        )

    def add(self, title, value=None, kind="crash", keep=False, source=None, reason=""):
        champion = self.ledger.champion
        source = source or f"X = {title!r}\n"
        number = None if champion else 0
        proposal = Proposal(
            number, title, source, champion.blob if champion else "", "search", reason
        )
        proposal = self.ledger.admit_proposal(proposal, compute_blob_id(source), source)
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
        self.ledger.record_verdict(
            verdict, commit=None, at=1000.0 + 70 * len(self.ledger.load_rows())
        )

    def report(self, **more):
        settings = {
            "metric": "val_bpb",
            "lab_name": "lab",
            "facts": self.ledger.load_series_facts("s1"),
            "notices": (),
        }
        return report_text.build_report(self.ledger, **{**settings, **more})


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
    lines = "\n".join(report_text.format_headline(night.report()))

    assert "val_bpb  1.1000 -> 0.9000   gain 0.2000" in lines
    assert "noise is not measured" in lines
    assert "7 experiments in 5 runs: 2 kept, 1 baseline, 2 discarded, 2 failed" in lines
    assert "±" not in lines


def test_a_higher_metric_can_be_the_better_one(tmp_path):
    night = Night(tmp_path / "ledger.db", lower_is_better=False)
    night.add("baseline", 0.5, keep=True)
    night.add("better", 0.7, keep=True)

    built = night.report(metric="accuracy")

    assert built.raw_gain == pytest.approx(0.2)
    assert "higher is better" in report_html.render_html(built)


def test_the_page_asks_nobody_for_anything_and_runs_no_script(night):
    page = Links()
    page.feed(report_html.render_html(night.report()))

    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.asked)


def test_hostile_text_is_shown_and_obeyed_by_nobody(night):
    page = report_html.render_html(night.report())

    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "<b>fast</b>" not in page
    assert "\x1b" not in "\n".join(report_text.format_headline(night.report()))


def test_a_failure_has_no_number_anywhere(night):
    page = report_html.render_html(night.report())

    (row,) = re.findall(
        r"<tr class=failed><td class=num>4<td>.*?(?=<tr|</tbody)", page, re.S
    )
    assert re.findall(r"<td class=num>([^<]*)", row)[1:] == [""] * 7


def test_kept_changes_come_with_their_diff_and_reason(night):
    page = report_html.render_html(night.report())

    assert "<span class=add>+Y = 2</span>" in page
    assert "because" in page
    assert "from the baseline to the champion" in page


def test_the_plot_has_every_experiment_and_says_what_it_clips(night):
    page = report_html.render_html(night.report())
    plot = page[page.index("<svg") : page.index("</svg>")]

    assert plot.count("<circle") == 4
    assert plot.count("<line class=failed") == 2
    assert plot.count("<polygon") == 1
    assert "1 beyond the scale" in plot


def test_an_empty_ledger_and_a_lone_baseline_make_a_sane_page(tmp_path):
    night = Night(tmp_path / "ledger.db")
    empty = report_html.render_html(night.report())
    night.add("baseline", 1.1, keep=True)
    lone = report_html.render_html(night.report())

    assert "Nothing has been measured yet" in empty
    assert "1.1000 → 1.1000" in lone
    assert "nothing kept yet" in "\n".join(report_text.format_headline(night.report()))


def test_ten_thousand_experiments_make_a_page_that_still_loads(night):
    rows = night.ledger.load_rows()
    many = tuple(replace(rows[2], number=n) for n in range(10_000))
    built = replace(night.report(), rows=(*rows, *many))

    page = report_html.render_html(built)

    assert len(page) < 8_000_000
    assert page.count("<circle") < 4000


# -- a night that measures its noise ---------------------------------------------------


class Careful(Night):
    """A ledger as a noise-aware night leaves it, filled by hand."""

    def scores(self, proposal, values, held=(), *, curve=(), spared=None, first=0):
        blob = compute_blob_id(proposal.source)
        found = []
        for seed, value in enumerate(values, first):
            run = Run(
                Candidate(proposal, blob),
                seed,
                60.0,
                3.0,
                1.5,
                Path("w"),
                (),
                Path("l"),
                curve,
                spared=spared,
            )
            at = 1000.0 + 70 * len(self.ledger.load_rows()) + seed
            holdout = held[seed - first] if held else None
            found.append(Score(run, value, 0.0001, 5.0, at, holdout))
        return tuple(found)

    def idea(self, title, parent=None):
        champion = self.ledger.champion
        source = f"X = {title!r}\n"
        if parent is None:
            parent = champion.blob if champion else ""
        proposal = Proposal(
            None if champion else 0, title, source, parent, "search", "because"
        )
        return self.ledger.admit_proposal(proposal, compute_blob_id(source), source)

    def decide(self, word, why, evidence):
        champion = self.ledger.champion
        return self.ledger.record_verdict(
            Verdict(word, why, evidence, champion),
            commit=None,
            at=1000.0 + 70 * len(self.ledger.load_rows()),
        )

    def measured(self, title, values, word="discard", why="worse", held=(), **more):
        proposal = self.idea(title, more.pop("parent", None))
        scores = self.scores(proposal, values, held, **more)
        return self.decide(word, why, scores)

    def ended(self, title, share):
        proposal = self.idea(title)
        candidate = Candidate(proposal, compute_blob_id(proposal.source))
        failure = Failure(candidate, "ended early", "hopeless", None, share)
        return self.decide("discard", "hopeless", failure)

    def again(self, number, values, occasion, held=(), first=0):
        row = self.ledger.load_row(number)
        source = self.ledger.load_source(row.blob)
        proposal = Proposal(number, row.title, source, row.parent, row.author)
        scores = self.scores(proposal, values, held, first=first)
        self.ledger.record_runs(scores, occasion)


@pytest.fixture
def careful(tmp_path):
    """Baseline 1.0, two near misses on the way, a champion near 0.98, more behind."""
    night = Careful(tmp_path / "careful.db")
    night.measured(
        "baseline", (1.0, 1.002, 0.998), "keep", "baseline", (1.1, 1.102, 1.098)
    )
    one = night.measured(
        "one", (0.996,), word="unresolved", why="unresolved: gain 0.004"
    )
    two = night.measured(
        "two", (0.99,), "unresolved", "unresolved: gain 0.010", parent=one.blob
    )
    night.measured(
        "three",
        (0.979, 0.981, 0.98),
        "keep",
        "gain 0.02",
        (1.085, 1.087, 1.086),
        parent=two.blob,
    )
    night.measured("bad", (1.05,))
    night.ended("hopeless", 0.25)
    night.again(3, (0.982,), "champion", (1.088,), first=3)
    return night


def told(night):
    return report_json.report_to_json(night.report())


def test_the_gain_comes_with_its_interval_and_the_luck_in_the_difference(careful):
    gain = told(careful)["gain"]
    lines = "\n".join(report_text.format_headline(careful.report()))

    assert gain["raw"] == pytest.approx(0.0195)
    assert gain["low"] < gain["claimed"] < gain["high"]
    assert gain["luck"] == pytest.approx(gain["raw"] - gain["claimed"])
    assert "(95 %: " in lines
    assert "raw gain +0.0195, " in lines


def test_the_noise_comes_with_interval_and_degrees_of_freedom(careful):
    found = told(careful)["noise"]

    assert found["degrees"] == 2  # seven runs, less two train.py and three seeds
    assert found["low"] < found["sd"] < found["high"]
    assert "2 degrees of freedom" in "\n".join(
        report_text.format_headline(careful.report())
    )


def test_near_misses_and_ended_runs_are_counted_apart_from_discards(careful):
    counts = told(careful)["counts"]

    assert counts == {
        "experiments": 6, "runs": 10, "kept": 1, "baselines": 1, "taken_back": 0,
        "discarded": 1, "unresolved": 2, "ended_early": 1, "failed": 0, "claimed": 0,
    }  # fmt: skip
    assert (
        "6 experiments in 10 runs: 1 kept, 1 baseline, 1 discarded, 2 unresolved, "
        "1 ended early, 0 failed"
    ) in report_text.format_headline(careful.report())
    assert [miss["experiment"] for miss in told(careful)["near_misses"]] == [2, 1]


def test_what_is_unresolved_and_worse_is_no_near_miss(careful):
    rows = {row.number: row for row in careful.ledger.load_rows()}
    near = careful.report().summary.near_misses

    assert [row.number for row in near] == [2, 1]
    assert all(rows[row.number].delta < 0 for row in near)


def test_a_night_of_quick_runs_took_its_time(tmp_path):
    lab = line_lab(tmp_path / "lab")
    run(lab, rate(0.02), rate(0.03))

    found = json.loads(command(lab, "report", "--json").stdout)

    assert found["wall_seconds"] > found["trained_seconds"] + found["scored_seconds"]


def test_a_champion_of_several_changes_is_one_keep_and_says_how_many(careful):
    (kept,) = told(careful)["kept"]
    page = report_html.render_html(careful.report())

    assert kept["changes"] == 3
    assert "three (3 changes)" in page
    assert any("autoresearch ablate" in line for line in told(careful)["unknown"])


def test_the_gap_between_validation_and_holdout_has_an_interval(careful):
    found = told(careful)["holdout"]

    assert found["gain"] == pytest.approx(0.0195)
    assert found["holdout_gain"] == pytest.approx(0.0135)
    assert found["gap"] == pytest.approx(0.006)
    assert found["low"] < 0.006 < found["high"]
    assert (found["baseline_runs"], found["champion_runs"]) == (3, 4)


def test_the_gap_is_never_more_certain_than_the_audits_allow(careful):
    found = told(careful)["holdout"]  # the two scores of a run differ by a constant

    assert found["high"] - found["low"] > 2 * 2 * 0.0001 * (2 * (1 / 3 + 1 / 4)) ** 0.5


def test_a_holdout_that_was_scored_once_each_has_a_gap_and_no_interval(tmp_path):
    night = Careful(tmp_path / "ledger.db")
    night.measured("baseline", (1.0,), "keep", "baseline", (1.1,))
    night.measured("better", (0.9,), "keep", "gain", (1.05,))

    found = told(night)
    lines = "\n".join(report_text.format_headline(night.report()))

    assert found["holdout"]["gap"] == pytest.approx(0.05)
    assert found["holdout"]["low"] is None
    assert "no interval: the scatter between runs is not known" in lines
    assert any("How certain the gap" in line for line in found["unknown"])


def test_time_saved_by_ending_runs_is_counted_and_an_unknown_rate_said(careful):
    early = told(careful)["early_kill"]
    lines = "\n".join(report_text.format_headline(careful.report()))

    assert early["ended"] == 1
    assert early["saved_seconds"] == pytest.approx(45)
    assert early["saved_share"] == pytest.approx(45 / 660)
    assert early["false_kills"] is None
    assert "wrongly ended: unknown, no run was exempted yet" in lines


def test_false_kills_are_estimated_from_the_spared(careful):
    spared = PruneDecision(0.25, 1.2, 0.01, 0.98)
    curve = ((0.15, 2.0), (0.25, 1.9))
    for n, value in enumerate((1.1, 0.97, 1.2, 1.3)):
        careful.measured(f"spared {n}", (value,), curve=curve, spared=spared)

    rate = told(careful)["early_kill"]["false_kills"]

    assert (rate["share"], rate["spared"], rate["killed"]) == (0.25, 4, 1)
    assert 0 < rate["low"] < 0.25 < rate["high"] < 1


def test_a_champion_that_was_taken_back_is_said_and_reigns_no_more(careful):
    careful.measured("lucky", (0.95,), "keep", "gain 0.03")
    now, before = (
        careful.ledger.load_champions()[-1],
        careful.ledger.load_champions()[-2],
    )
    careful.ledger.record_reversion(before, now, "0.99 in 3 runs", "c" * 40, 2000.0)

    found, page = told(careful), report_html.render_html(careful.report())

    assert found["champion"]["experiment"] == 3
    assert found["counts"]["taken_back"] == 1
    assert [kept["experiment"] for kept in found["kept"]] == [3]
    assert found["taken_back"][0] == {
        "experiment": 6, "instead": 3, "why": "0.99 in 3 runs",
    }  # fmt: skip
    assert "experiment 6 was taken back, 3 is champion again: 0.99 in 3 runs" in page
    assert "<circle class=back" in page


def test_a_replicated_gain_stands_on_top_and_changes_no_other_number(careful):
    before = told(careful)
    careful.again(0, (1.0, 1.001), "replicate", (1.1, 1.101), first=100)
    careful.again(3, (0.985, 0.987), "replicate", (1.09, 1.092), first=100)

    found, lines = told(careful), report_text.format_headline(careful.report())

    assert found["certificate"]["gain"] == pytest.approx(0.0145)
    assert found["certificate"]["pairs"] == 2
    assert lines[0].startswith("replicated on 2 fresh seeds: gain +0.0145")
    assert "the night claimed" in lines[2]
    for name in ("baseline", "champion"):
        assert found[name]["value"] == before[name]["value"]
    assert found["gain"]["raw"] == before["gain"]["raw"]
    assert found["holdout"]["gap"] == before["holdout"]["gap"]
    assert not any("replicate" in line for line in found["unknown"])


def test_what_is_not_known_follows_from_what_there_is(tmp_path, careful):
    greedy = Night(tmp_path / "greedy.db")
    greedy.add("baseline", 1.0, keep=True)
    greedy.add("better", 0.9, keep=True)
    unknown = "\n".join(report_text.list_unknowns(greedy.report()))
    known = "\n".join(report_text.list_unknowns(careful.report()))

    assert "nothing ran twice" in unknown
    assert "was not scored" in unknown
    assert "nothing ran twice" not in known
    assert "was not scored" not in known
    assert "replicate was not run" in known
    assert "no isolation" in unknown  # the ledger says cage none


def test_a_lab_without_noise_says_that_the_difference_is_exact(tmp_path):
    night = Careful(tmp_path / "ledger.db")
    night.measured("baseline", (1.0, 1.0), "keep", "baseline")
    night.measured("better", (0.9,), "keep", "gain")

    gain = told(night)["gain"]
    lines = "\n".join(report_text.format_headline(night.report()))

    assert gain["claimed"] is None
    assert "the difference is exact" in gain["why_not"]
    assert "noise    none" in lines


def test_a_measured_noise_draws_bars_at_what_was_kept_and_another_does_not(
    careful, night
):
    assert report_html.render_html(careful.report()).count("<line class=bar") == 2
    assert "<line class=bar" not in report_html.render_html(night.report())


def test_json_has_every_number_and_nothing_that_is_no_json(careful, night, tmp_path):
    names = {
        "metric", "lower_is_better", "series", "baseline", "champion", "gain", "noise",
        "heavy_tails", "drift", "certificate", "holdout", "counts", "kept",
        "near_misses", "taken_back", "early_kill", "wall_seconds", "trained_seconds",
        "scored_seconds", "dollars", "unknown",
    }  # fmt: skip
    empty = Night(tmp_path / "empty.db")
    for some in (careful, night, empty):
        found = told(some)

        assert set(found) == names
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_results_tsv_has_intervals_where_the_noise_is_known(careful, night, tmp_path):
    for some, has in ((careful, True), (night, False)):
        path = tmp_path / "results.tsv"
        results_tsv.write_results(path, "val_bpb", some.ledger.load_rows())
        head, *lines = [line.split("\t") for line in path.read_text().splitlines()]
        kept = [dict(zip(head, line, strict=True)) for line in lines][-3:]
        with_delta = [row for row in kept if row["delta"]]

        assert with_delta
        for row in with_delta:
            low, high = row["delta_low"], row["delta_high"]
            if has:
                assert float(low) < float(row["delta"]) < float(high)
            else:
                assert (low, high) == ("", "")


def test_fewer_runs_make_a_wider_interval_in_results_tsv(careful):
    bounds = results_tsv.compute_delta_intervals(careful.ledger.load_rows())
    width = {number: high - low for number, (low, high) in bounds.items()}

    assert width[3] < width[1]  # three runs, one run
    assert 0 not in width
