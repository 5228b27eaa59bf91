"""The report as values and lines of text.

`build_report` reads the ledger once. `format_headline` is the report on a terminal,
`list_unknowns` what it cannot tell. The numbers come from `summary`; the page is
`report_html`, the JSON `report_json`.

Promises: only measured results are stated, and an interval only where the noise is
known.
"""

import difflib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from autoresearch.experiment import Row
from autoresearch.records.ledger import Ledger, ProposerCall
from autoresearch.records.results_tsv import (
    CLOCK_RESOLUTION_SECONDS,
    format_ancestors,
    format_decision,
)
from autoresearch.reporting.format import format_counts, pluralize
from autoresearch.reporting.summary import SeriesSummary, summarize_series
from autoresearch.stats.paired import Certificate
from autoresearch.text import format_delta, format_score, to_one_line

MAX_DIFF_LINES = 400
# How the outcome of a proposer call begins if it returned an idea.
IDEA_OUTCOMES = ("proposed", "refused")
LONG_RUN_FACTOR = 100  # times the budget: to train a champion for use
MAX_OUTAGES_SHOWN = 12  # calls without an idea that are listed, of each proposer
MAX_NEAR_MISSES_SHOWN = 12
MAX_KEPT_SHOWN = 12  # on a terminal
FEW_DEGREES_OF_FREEDOM = 5  # with fewer the noise is listed as uncertain


@dataclass(frozen=True, slots=True)
class KeptChange:
    """One champion: everything that changed since the champion before it."""

    row: Row
    diff: tuple[str, ...]  # lines of a unified diff
    change_count: int = 1  # experiments since then, itself included


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that text, HTML and JSON are made from."""

    lab_name: str
    metric: str
    lower_is_better: bool
    rows: tuple[Row, ...]  # of all series, in the order of decision
    series: str  # the current one, which the headline is about
    baseline: Row | None  # None: no verdict yet
    champion: Row | None
    kept_changes: tuple[KeptChange, ...]
    total_diff: tuple[str, ...]
    series_facts: Mapping[str, object]
    notices: Sequence[str]
    summary: SeriesSummary
    counts: Mapping[str, int]  # of every series, from `Ledger.count_experiments`
    unpriced_answers: int  # answers of models and agents whose cost is not known
    dollars: float  # cost of all other answers
    proposer_lines: tuple[str, ...]  # calls to models and agents, costs, outages

    @property
    def run_count(self) -> int:
        return sum(row.runs for row in self.rows)

    @property
    def wall_seconds(self) -> float:
        """From the first proposal to the last verdict, less pauses between nights."""
        total = 0.0
        last: float | None = None
        for row in self.rows:
            since = row.proposed_at if last is None else max(last, row.proposed_at)
            # A verdict's time is cut to whole seconds; a proposal's is not.
            until = row.decided_at + CLOCK_RESOLUTION_SECONDS
            total += max(0.0, until - since)
            last = until if last is None else max(last, until)
        return max(total, self.trained_seconds)

    @property
    def trained_seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def scored_seconds(self) -> float:
        return sum(row.evaluation_seconds for row in self.rows)

    @property
    def reverted_numbers(self) -> frozenset[int]:
        """Champions that later turned out worse."""
        return frozenset(back.reverted_number for back in self.summary.reverted)

    def describe_verdict(self, row: Row) -> str:
        """The verdict in one or two words."""
        return format_decision(row, taken_back=row.number in self.reverted_numbers)

    @property
    def imported_count(self) -> int:
        """Experiments that were imported, not measured here."""
        return self.counts["claimed"]

    @property
    def raw_gain(self) -> float | None:
        """The plain difference to the baseline; None before there is a champion."""
        return self.summary.raw_gain


def build_report(
    ledger: Ledger,
    *,
    metric: str,
    lab_name: str,
    facts: Mapping[str, object],
    notices: Sequence[str],
) -> Report:
    """Read everything a report needs from the ledger, once."""
    rows = tuple(ledger.load_rows())
    series = ledger.find_last_series()
    summary = summarize_series(ledger)
    baseline, champion = summary.baseline, summary.champion
    total_diff: tuple[str, ...] = ()
    if baseline and champion:
        total_diff = build_bounded_diff(ledger, baseline.blob, champion.blob)
    costs = [call.dollars for call in ledger.load_proposer_calls()]
    return Report(
        lab_name,
        metric,
        ledger.lower_is_better,
        rows,
        series,
        baseline,
        champion,
        build_kept_changes(ledger, rows, summary),
        total_diff,
        facts,
        notices,
        summary,
        ledger.count_experiments(),
        sum(cost is None for cost in costs),
        sum(cost for cost in costs if cost is not None),
        tuple(format_proposer_calls(ledger)),
    )


def format_proposer_calls(ledger: Ledger) -> list[str]:
    """Calls to models and agents: how many, what they cost, and which had no idea."""
    lines = []
    by_author: dict[str, list[ProposerCall]] = {}
    for call in ledger.load_proposer_calls():
        by_author.setdefault(call.author, []).append(call)
    for author, calls in by_author.items():
        idea_count = sum(call.blob != "" for call in calls)
        dollars = [call.dollars for call in calls if call.dollars is not None]
        unpriced = len(calls) - len(dollars)
        cost = f"${sum(dollars):.2f}" if dollars else ""
        parts = [cost, f"{unpriced} of unknown cost" if unpriced else ""]
        costs = ", ".join(part for part in parts if part)
        times, ideas = pluralize(len(calls), "time"), pluralize(idea_count, "idea")
        lines.append(f"{to_one_line(author)}: asked {times}, {ideas}; {costs}")
        outages = [call for call in calls if not call.outcome.startswith(IDEA_OUTCOMES)]
        for call in outages[-MAX_OUTAGES_SHOWN:]:
            at = time.strftime("%H:%M", time.localtime(call.asked_at))
            lines.append(f"  from {at}: {to_one_line(call.outcome)[:120]}")
        if len(outages) > MAX_OUTAGES_SHOWN:
            more = pluralize(len(outages) - MAX_OUTAGES_SHOWN, "time")
            lines.append(f"  and {more} before that")
    return lines


def build_kept_changes(
    ledger: Ledger, rows: Sequence[Row], summary: SeriesSummary
) -> tuple[KeptChange, ...]:
    """Champions that were not reverted, each against the champion before it."""
    by_number = {row.number: row for row in rows}
    kept = []
    for number, change_count in summary.champion_steps:
        row = by_number[number]
        if row.against is None:
            continue
        previous = by_number.get(row.against)
        before = row.parent if previous is None else previous.blob
        diff = build_bounded_diff(ledger, before, row.blob)
        kept.append(KeptChange(row, diff, change_count))
    return tuple(kept)


def build_bounded_diff(ledger: Ledger, before: str, after: str) -> tuple[str, ...]:
    """The lines of a unified diff of two sources, at most MAX_DIFF_LINES."""
    old, new = (ledger.load_source(blob).splitlines() for blob in (before, after))
    lines = list(difflib.unified_diff(old, new, "before", "after", lineterm=""))
    more = len(lines) - MAX_DIFF_LINES
    shown = lines[:MAX_DIFF_LINES]
    return (*shown, f"... {more} more lines") if more > 0 else tuple(shown)


# -- lines of text ---------------------------------------------------------------------


def format_headline(report: Report) -> list[str]:
    """The report on a terminal."""
    if report.baseline is None or report.champion is None:
        return ["nothing has been measured yet", *format_imported(report)]
    before = format_score(report.summary.baseline_mean)
    after = format_score(report.summary.champion_mean)
    lines = [
        *format_certificate(report),
        f"{report.metric}  {before} -> {after}   {format_gain(report)}",
        *format_shrinkage(report),
        *format_noise(report),
        *format_holdout(report),
        format_experiment_counts(report),
        *format_early_stopping(report),
        *format_reverted(report),
        *format_near_misses(report),
        *format_imported(report),
        f"time     {format_clock(report.wall_seconds)}, "
        f"{format_training_share(report)} of it training",
    ]
    for kept in report.kept_changes[-MAX_KEPT_SHOWN:]:
        row = kept.row
        title = to_one_line(row.title) + format_change_count(kept)
        lines.append(f"{row.number:>4} {format_delta(row.delta):>9}  {title}")
    return [*lines, *(f"note     {to_one_line(notice)}" for notice in report.notices)]


def list_champion_commands(report: Report) -> list[str]:
    """Commands that diff and train the champion; none if it is the baseline."""
    if report.baseline is None or report.champion is report.baseline:
        return []
    lines = [f"git diff autoresearch/{report.baseline.number} HEAD -- train.py"]
    # The series has it as "300 ± 15 s" or "1000000 tokens".
    amount, unit = str(report.series_facts.get("budget", "")).partition(" ")[::2]
    with suppress(ValueError):
        option = "--tokens" if unit == "tokens" else "--seconds"
        longer = f"{LONG_RUN_FACTOR * float(amount):.0f}"
        lines.append(f"python train.py {option} {longer} --out champion/")
    return lines


def format_change_count(kept: KeptChange) -> str:
    """How many changes a kept one consists of; "" for one."""
    return f" ({kept.change_count} changes)" if kept.change_count > 1 else ""


def format_interval(low: float | None, high: float | None) -> str:
    """A 95 % interval in words."""
    if low is None or high is None:
        return "no interval"
    return f"95 %: {format_delta(low)} to {format_delta(high)}"


def format_gain(report: Report) -> str:
    """The gain with its interval, or why there is none."""
    summary = report.summary
    if report.champion is report.baseline or summary.raw_gain is None:
        return "nothing kept yet"
    if (estimate := summary.gain_estimate) is not None:
        interval = format_interval(estimate.low, estimate.high)
        return f"gain {format_score(estimate.gain)}   ({interval})"
    gain = f"gain {format_score(summary.raw_gain)}"
    if summary.noise is None:
        run_count = report.champion.runs if report.champion else 0
        runs = "one run each" if run_count < 2 else f"{run_count} runs"
        return f"{gain}   ({runs}: the noise is not measured)"
    return f"{gain}   (no interval: {summary.no_estimate_reason})"


def format_shrinkage(report: Report) -> list[str]:
    """The plain difference, and how much of it the estimate attributes to chance."""
    raw, shrinkage = report.summary.raw_gain, report.summary.shrinkage
    if raw is None or shrinkage is None:
        return []
    line = f"raw gain {format_delta(raw)}, "
    if shrinkage <= 0:
        return [f"{line}none of it attributed to chance"]
    share = f" ({100 * shrinkage / raw:.0f} %)" if raw > 0 else ""
    return [f"{line}{format_score(shrinkage)}{share} of it attributed to chance"]


def format_noise(report: Report) -> list[str]:
    """How much the scores of one train.py differ between runs, and any drift."""
    noise, drift = report.summary.noise, report.summary.drift
    if noise is None:
        return []
    if noise.sd == 0:
        return ["noise    none: runs of the same train.py score the same"]
    tails = {
        None: "too few runs to test for heavy tails",
        True: "heavy tails: occasional runs are far off",
        False: "no heavy tails",
    }[report.summary.has_heavy_tails]
    lines = [
        f"noise    sd {noise.sd:.2g} a run (95 %: {noise.low:.2g} to {noise.high:.2g}, "
        f"{noise.degrees:.0f} degrees of freedom), {tails}"
    ]
    if drift is not None:
        lines.append(
            f"drift    {drift.per_hour:+.2g} an hour: scores on this machine drift, so "
            "the intervals are too narrow"
        )
    return lines


def format_holdout(report: Report) -> list[str]:
    """Gain on validation against gain on the holdout."""
    holdout = report.summary.holdout
    if holdout is None:
        return []
    interval = format_interval(holdout.low, holdout.high)
    if holdout.low is None:
        interval = "no interval: the scatter between runs is not known"
    return [
        f"holdout  gain {format_delta(holdout.gain)} on validation, "
        f"{format_delta(holdout.holdout_gain)} on the holdout; "
        f"gap {format_delta(holdout.gap)} ({interval})"
    ]


def format_certificate(report: Report) -> list[str]:
    """What `replicate` measured: it comes first, as the strongest evidence."""
    certificate = report.summary.certificate
    if certificate is None:
        return []
    c, seeds = certificate, pluralize(certificate.pairs, "fresh seed")
    lines = [
        f"replicated on {seeds}: gain {format_delta(c.gain)} "
        f"({format_interval(c.low, c.high)})"
    ]
    if c.holdout_gain is not None and c.gap is not None:
        lines.append(
            f"         on the holdout {format_delta(c.holdout_gain)} "
            f"({format_interval(c.holdout_low, c.holdout_high)}), gap "
            f"{format_delta(c.gap)} ({format_interval(c.gap_low, c.gap_high)})"
        )
    return [*lines, format_certificate_verdict(certificate, report.summary)]


def format_certificate_verdict(certificate: Certificate, night: SeriesSummary) -> str:
    """Whether the gain was replicated, and whether the night's estimate agrees."""
    if certificate.low is None or certificate.high is None:
        return "         one pair gives no interval: replicate on more seeds"
    if certificate.low > 0:
        verdict = "the gain is confirmed"
    elif certificate.high < 0:
        verdict = "the champion is worse than the baseline"
    else:
        verdict = "the interval contains 0: the gain is not confirmed"
    if night.gain_estimate is None:
        return f"         {verdict}"
    gain = night.gain_estimate.gain
    side = "inside" if certificate.low <= gain <= certificate.high else "outside"
    return (
        f"         {verdict}; the night claimed {format_delta(gain)}, {side} this "
        "interval"
    )


def format_early_stopping(report: Report) -> list[str]:
    """What ending hopeless runs saved, and how many of them were ended wrongly.

    The rate is known from exempted runs: hopeless ones that were left to finish.
    """
    early = report.summary.early_stopping
    if not early.ended and early.false_kills is None:
        return []
    saved = f"{format_clock(early.saved_seconds)} ({early.saved_share:.0%}) of training"
    line = f"early    {early.ended} ended early, {saved} saved; wrongly ended: "
    rate = early.false_kills
    if rate is None:
        return [f"{line}unknown, no run was exempted yet"]
    low, high = f"{100 * rate.low:.0f}", f"{100 * rate.high:.0f}"
    return [
        f"{line}{100 * rate.share:.0f} % (95 %: {low} to {high} %, from "
        f"{pluralize(rate.spared, 'exempted run')})"
    ]


def format_reverted(report: Report) -> list[str]:
    """Champions that turned out worse."""
    return [
        f"back     experiment {reversion.reverted_number} was taken back, "
        f"{reversion.restored_number} is champion again: {to_one_line(reversion.why)}"
        for reversion in report.summary.reverted
    ]


def format_near_misses(report: Report) -> list[str]:
    """Experiments that may be better, but are not proven to be."""
    near = report.summary.near_misses
    if not near:
        return []
    shown = ", ".join(
        f"{row.number}{format_ancestors(row.unproven_ancestors)} "
        f"({format_delta(row.delta)})"
        for row in near[:MAX_NEAR_MISSES_SHOWN]
    )
    more = len(near) - MAX_NEAR_MISSES_SHOWN
    count = "1 near miss" if len(near) == 1 else f"{len(near)} near misses"
    return [f"near     {count}: {shown}" + (f" and {more} more" if more > 0 else "")]


def format_imported(report: Report) -> list[str]:
    """How many results were imported; they are in no other number of the report."""
    if not report.imported_count:
        return []
    return [
        f"claimed  {pluralize(report.imported_count, 'imported experiment')}: claimed "
        "elsewhere, not measured here, not counted above"
    ]


def format_experiment_counts(report: Report) -> str:
    """Experiments, runs, verdicts, and the kinds of failures."""
    counts = Counter(row.kind for row in report.rows if row.decision == "failed")
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return format_counts(report.counts) + (f" ({kinds})" if kinds else "")


def format_training_share(report: Report) -> str:
    """Training's share of the wall-clock time."""
    if not report.wall_seconds:
        return "0 %"
    return f"{100 * report.trained_seconds / report.wall_seconds:.0f} %"


def format_clock(seconds: float) -> str:
    """`8 h 05 min`, `12 min 30 s`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def list_unknowns(report: Report) -> list[str]:
    """What this report cannot tell, one sentence each."""
    return [
        *list_noise_unknowns(report),
        *list_holdout_unknowns(report),
        *list_other_unknowns(report),
    ]


def list_noise_unknowns(report: Report) -> list[str]:
    """What is not known about the noise, and so about the gain."""
    summary, noise = report.summary, report.summary.noise
    unknowns = []
    if noise is None:
        unknowns.append(
            "How noisy a score is: nothing ran twice. With one run each, about half of "
            "the changes kept near the end of a night do not help."
        )
    elif noise.degrees < FEW_DEGREES_OF_FREEDOM and noise.sd > 0:
        unknowns.append(
            "How noisy a score is, precisely: the estimate has only "
            f"{noise.degrees:.0f} degrees of freedom."
        )
    if noise is not None and noise.sd > 0 and summary.has_heavy_tails is None:
        unknowns.append("Whether the noise has heavy tails: too few runs.")
    if summary.drift is not None:
        unknowns.append("How much of the gain is this machine's drift.")
    if summary.champion is not summary.baseline and summary.certificate is None:
        unknowns.append(
            "Whether the gain holds on fresh seeds: autoresearch replicate was not run "
            "for this champion."
        )
    if any(kept.change_count > 1 for kept in report.kept_changes):
        unknowns.append(
            "Which of a champion's several changes made it better: autoresearch ablate."
        )
    return unknowns


def list_holdout_unknowns(report: Report) -> list[str]:
    """What is not known about overfitting to the validation split."""
    holdout, certificate = report.summary.holdout, report.summary.certificate
    if certificate is not None and certificate.gap_low is not None:
        return []
    if holdout is None and (certificate is None or certificate.gap is None):
        return [
            "How much the night overfitted the validation split: the sealed holdout "
            "was not scored for both the baseline and a champion."
        ]
    if holdout is None or holdout.low is None:
        return [
            "How certain the gap to the holdout is: the scatter between runs is not "
            "known."
        ]
    return []


def list_other_unknowns(report: Report) -> list[str]:
    """What no night can know, and what was not measured in this one."""
    early = report.summary.early_stopping
    level = report.series_facts.get("cage", "none")
    unknowns = []
    if early.ended and early.false_kills is None:
        unknowns.append("How many runs were ended wrongly: none was exempted yet.")
    if report.imported_count:
        unknowns.append("Whether imported results are true: not measured here.")
    if level == "none":
        unknowns.append(
            "What a train.py at cage level 'none' read besides its text: it ran as "
            "you, with time and memory limits but no isolation."
        )
    else:
        unknowns.append(
            f"What a train.py did inside its cage (level {level!r}): seconds of hidden "
            "training at start-up and while being scored remain possible."
        )
    if report.unpriced_answers:
        answers = pluralize(report.unpriced_answers, "answer")
        unknowns.append(f"What {answers} of models or agents cost: not reported.")
    return [
        *unknowns,
        "What it cost in energy: not measured.",
        "Whether the gain holds at another budget, size, text or machine.",
    ]
