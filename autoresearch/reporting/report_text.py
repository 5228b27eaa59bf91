"""The morning after: everything that a report says, as values and lines.

`build` reads the ledger once; `headline` says it on a terminal; `unknowns` lists what
nobody knows; `as_json` is the contract of `report --json`. The page is `report`.

Promises: only measured things are stated, and an interval only where the noise allows.
The numbers are `findings`.
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
from autoresearch.reporting import summary
from autoresearch.reporting.format import format_counts
from autoresearch.reporting.summary import SeriesSummary
from autoresearch.stats.paired import Certificate
from autoresearch.text import format_delta, format_score, to_one_line

MAX_DIFF_LINES = 400
IDEA_OUTCOMES = (
    "proposed",
    "refused",
)  # how the outcome of an asking begins that had an idea
LONG_RUN_FACTOR = 100  # times the budget: a champion trained to be used
MAX_OUTAGES_SHOWN = 12  # times that a proposer was away, named one by one
MAX_NEAR_MISSES_SHOWN = 12  # near misses that are named one by one
FEW_DEGREES_OF_FREEDOM = 5  # of freedom: a noise known from fewer is said to be a guess


@dataclass(frozen=True, slots=True)
class KeptChange:
    """One kept change: everything since the champion before."""

    row: Row
    diff: tuple[str, ...]
    change_count: int = 1  # experiments on the way, itself included


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the views need."""

    lab_name: str
    metric: str
    lower_is_better: bool
    rows: tuple[Row, ...]  # of all series, in the order of decision
    series: str  # the present one; the headline is about it
    baseline: Row | None  # None: no verdict yet
    champion: Row | None
    kept_changes: tuple[KeptChange, ...]
    total_diff: tuple[str, ...]
    series_facts: Mapping[str, object]
    notices: Sequence[str]
    summary: SeriesSummary
    counts: Mapping[str, int]  # of every series, as `Ledger.counts`
    unpriced_answers: int  # of models and agents
    dollars: float  # that the others are known to have cost
    proposer_lines: tuple[
        str, ...
    ]  # who was asked, what it cost, and when they were away

    @property
    def run_count(self) -> int:
        return sum(row.runs for row in self.rows)

    @property
    def wall_seconds(self) -> float:
        """From the first proposal to the last verdict, less long pauses between."""
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
        """Champions that were taken back."""
        return frozenset(back.reverted_number for back in self.summary.reverted)

    def describe_verdict(self, row: Row) -> str:
        """A verdict in a word or two."""
        return format_decision(row, taken_back=row.number in self.reverted_numbers)

    @property
    def imported_count(self) -> int:
        """Experiments imported from others, measured by nobody here."""
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
    """Read all that is needed from the ledger, once."""
    rows = tuple(ledger.load_rows())
    series = ledger.find_last_series()
    found = summary.summarize_series(ledger)
    baseline, champion = found.baseline, found.champion
    total: tuple[str, ...] = ()
    if baseline and champion:
        total = build_bounded_diff(ledger, baseline.blob, champion.blob)
    costs = [asking.dollars for asking in ledger.load_proposer_calls()]
    return Report(
        lab_name,
        metric,
        ledger.lower_is_better,
        rows,
        series,
        baseline,
        champion,
        build_kept_changes(ledger, rows, found),
        total,
        facts,
        notices,
        found,
        ledger.count_experiments(),
        sum(cost is None for cost in costs),
        sum(cost for cost in costs if cost is not None),
        tuple(format_proposer_calls(ledger)),
    )


def format_proposer_calls(ledger: Ledger) -> list[str]:
    """What was asked of models and agents, what it cost, and when they were away."""
    lines = []
    by_author: dict[str, list[ProposerCall]] = {}
    for asking in ledger.load_proposer_calls():
        by_author.setdefault(asking.author, []).append(asking)
    for author, all_of_them in by_author.items():
        came = sum(asking.blob != "" for asking in all_of_them)
        known = [a.dollars for a in all_of_them if a.dollars is not None]
        unknown = len(all_of_them) - len(known)
        cost = f"${sum(known):.2f}" if known else ""
        parts = [cost, f"{unknown} of unknown cost" if unknown else ""]
        words = ", ".join(part for part in parts if part)
        times, ideas = pluralize(len(all_of_them), "time"), pluralize(came, "idea")
        lines.append(f"{to_one_line(author)}: asked {times}, {ideas}; {words}")
        away = [a for a in all_of_them if not a.outcome.startswith(IDEA_OUTCOMES)]
        for asking in away[-MAX_OUTAGES_SHOWN:]:
            at = time.strftime("%H:%M", time.localtime(asking.asked_at))
            lines.append(f"  from {at}: {to_one_line(asking.outcome)[:120]}")
        if len(away) > MAX_OUTAGES_SHOWN:
            lines.append(
                f"  and {pluralize(len(away) - MAX_OUTAGES_SHOWN, 'time')} before that"
            )
    return lines


def pluralize(count: int, word: str) -> str:
    """`1 idea`, `2 ideas`"""
    return f"{count} {word}" + ("" if count == 1 else "s")


def build_kept_changes(
    ledger: Ledger, rows: Sequence[Row], found: SeriesSummary
) -> tuple[KeptChange, ...]:
    """What reigned and was not taken back, each against the champion before it."""
    by_number = {row.number: row for row in rows}
    kept = []
    for at, changes in found.champion_steps:
        row = by_number[at]
        if row.against is None:
            continue
        rival = by_number.get(row.against)
        before = row.parent if rival is None else rival.blob
        kept.append(
            KeptChange(row, build_bounded_diff(ledger, before, row.blob), changes)
        )
    return tuple(kept)


def build_bounded_diff(ledger: Ledger, before: str, after: str) -> tuple[str, ...]:
    """A unified diff of two train.py, bounded."""
    old, new = (ledger.load_source(blob).splitlines() for blob in (before, after))
    lines = list(difflib.unified_diff(old, new, "before", "after", lineterm=""))
    more = len(lines) - MAX_DIFF_LINES
    shown = lines[:MAX_DIFF_LINES]
    return (*shown, f"... {more} more lines") if more > 0 else tuple(shown)


# -- words -----------------------------------------------------------------------------


def format_headline(report: Report) -> list[str]:
    """The report on a terminal."""
    if report.baseline is None or report.champion is None:
        return ["nothing was measured yet", *format_imported(report)]
    found = report.summary
    lines = [
        *format_certificate(report),
        f"{report.metric}  {format_score(found.baseline_mean)} -> "
        f"{format_score(found.champion_mean)}   {format_gain(report)}",
        *format_shrinkage(report),
        *format_noise(report),
        *format_holdout(report),
        format_experiment_counts(report),
        *format_early_stopping(report),
        *format_reverted(report),
        *format_near_misses(report),
        *format_imported(report),
        f"time     {format_clock(report.wall_seconds)}, trained {format_training_share(report)} of it",
    ]
    for kept in report.kept_changes[-12:]:
        row = kept.row
        title = to_one_line(row.title) + format_change_count(kept)
        lines.append(f"{row.number:>4} {format_delta(row.delta):>9}  {title}")
    return [*lines, *(f"note     {to_one_line(words)}" for words in report.notices)]


def list_champion_commands(report: Report) -> list[str]:
    """What to do with a champion; nothing while there is none but the baseline."""
    if report.baseline is None or report.champion is report.baseline:
        return []
    lines = [f"git diff autoresearch/{report.baseline.number} HEAD -- train.py"]
    # "300 ± 15 s" or "1000000 tokens", as the series has it
    much, unit = str(report.series_facts.get("budget", "")).partition(" ")[::2]
    with suppress(ValueError):
        option = "--tokens" if unit == "tokens" else "--seconds"
        more = f"{LONG_RUN_FACTOR * float(much):.0f}"
        lines.append(f"python train.py {option} {more} --out champion/")
    return lines


def format_change_count(kept: KeptChange) -> str:
    """How many changes a keep consists of, where it is more than one."""
    return f" ({kept.change_count} changes on the way)" if kept.change_count > 1 else ""


def format_interval(low: float | None, high: float | None) -> str:
    """An interval in words."""
    if low is None or high is None:
        return "no interval"
    return f"95 %: {format_delta(low)} to {format_delta(high)}"


def format_gain(report: Report) -> str:
    """The gain, and what it rests on."""
    found = report.summary
    if report.champion is report.baseline or found.raw_gain is None:
        return "nothing kept yet"
    if found.gain_estimate is not None:
        claim = found.gain_estimate
        return f"gain {format_score(claim.gain)}   ({format_interval(claim.low, claim.high)})"
    runs = report.champion.runs if report.champion else 0
    if found.noise is None:
        how = "one run each" if runs < 2 else f"{runs} runs"
        return (
            f"gain {format_score(found.raw_gain)}   ({how}: the noise is not measured)"
        )
    return f"gain {format_score(found.raw_gain)}   (no interval: {found.no_estimate_reason})"


def format_shrinkage(report: Report) -> list[str]:
    """The plain difference, and how much of it is not believed."""
    raw, luck = report.summary.raw_gain, report.summary.shrinkage
    if raw is None or luck is None:
        return []
    part = f" ({100 * luck / raw:.0f} %)" if raw > 0 and luck > 0 else ""
    if luck > 0:
        return [
            f"luck     plain difference {format_delta(raw)}, {format_score(luck)}{part} is luck"
        ]
    return [
        f"luck     plain difference {format_delta(raw)}: none of it is taken for luck"
    ]


def format_noise(report: Report) -> list[str]:
    """How much a score moves when nothing changed."""
    found = report.summary
    if found.noise is None:
        return []
    known = found.noise
    if known.sd == 0:
        return ["noise    none: runs of the same train.py score the same"]
    tails = {
        None: "too few runs to tell of heavy tails",
        True: "heavy tails: now and then a run is far out",
        False: "no heavy tails",
    }[found.has_heavy_tails]
    lines = [
        f"noise    sd {known.sd:.2g} a run (95 %: {known.low:.2g} to {known.high:.2g}, "
        f"{known.degrees:.0f} degrees of freedom), {tails}"
    ]
    if found.drift is not None:
        lines.append(
            f"drift    {found.drift.per_hour:+.2g} an hour: something about this "
            "machine drifts, so intervals hold less often than they say"
        )
    return lines


def format_holdout(report: Report) -> list[str]:
    """Gain on validation against gain on the holdout."""
    found = report.summary.holdout
    if found is None:
        return []
    told = format_interval(found.low, found.high)
    if found.low is None:
        told = "no interval: the scatter between runs is not known"
    return [
        f"holdout  gain {format_delta(found.gain)} on validation, "
        f"{format_delta(found.holdout_gain)} on the holdout; gap {format_delta(found.gap)} ({told})"
    ]


def format_certificate(report: Report) -> list[str]:
    """What `replicate` found: on top, because it is the strongest evidence."""
    found = report.summary.certificate
    if found is None:
        return []
    seeds = "1 fresh seed" if found.pairs == 1 else f"{found.pairs} fresh seeds"
    lines = [
        f"replicated on {seeds}: gain {format_delta(found.gain)} "
        f"({format_interval(found.low, found.high)})"
    ]
    if found.holdout_gain is not None and found.gap is not None:
        lines.append(
            f"         on the holdout {format_delta(found.holdout_gain)} "
            f"({format_interval(found.holdout_low, found.holdout_high)}), gap "
            f"{format_delta(found.gap)} ({format_interval(found.gap_low, found.gap_high)})"
        )
    return [*lines, format_certificate_verdict(found, report.summary)]


def format_certificate_verdict(found: Certificate, night: SeriesSummary) -> str:
    """Whether the gain came again, and whether the night's claim was right."""
    if found.low is None or found.high is None:
        return "         one pair has no interval: replicate on more seeds"
    if found.low > 0:
        word = "the gain came again"
    elif found.high < 0:
        word = "the champion is worse than the baseline"
    else:
        word = "the interval holds 0: the gain is not shown"
    if night.gain_estimate is None:
        return f"         {word}"
    held = found.low <= night.gain_estimate.gain <= found.high
    which = "inside" if held else "outside"
    said = f"the night claimed {format_delta(night.gain_estimate.gain)}, {which} this interval"
    return f"         {word}; {said}"


def format_early_stopping(report: Report) -> list[str]:
    """What ending hopeless runs saved, and what it may have cost."""
    early = report.summary.early_stopping
    if not early.ended and early.false_kills is None:
        return []
    saved = f"{format_clock(early.saved_seconds)} ({early.saved_share:.0%}) of training saved"
    said = f"early    {early.ended} ended early, {saved}; falsely: "
    rate = early.false_kills
    if rate is None:
        return [f"{said}unknown, none was spared yet"]
    low, high = f"{100 * rate.low:.0f}", f"{100 * rate.high:.0f}"
    return [
        f"{said}{100 * rate.share:.0f} % (95 %: {low} to {high} %, from {rate.spared} "
        "that were spared)"
    ]


def format_reverted(report: Report) -> list[str]:
    """Champions that turned out worse."""
    return [
        f"back     experiment {back.reverted_number} was taken back, {back.restored_number} reigns "
        f"again: {to_one_line(back.why)}"
        for back in report.summary.reverted
    ]


def format_near_misses(report: Report) -> list[str]:
    """What may be better, but not beyond doubt."""
    near = report.summary.near_misses
    if not near:
        return []
    first = ", ".join(
        f"{row.number}{format_ancestors(row.unproven_ancestors)} ({format_delta(row.delta)})"
        for row in near[:MAX_NEAR_MISSES_SHOWN]
    )
    more = (
        f" and {len(near) - MAX_NEAR_MISSES_SHOWN} more"
        if len(near) > MAX_NEAR_MISSES_SHOWN
        else ""
    )
    return [f"near     {len(near)} near misses: {first}{more}"]


def format_imported(report: Report) -> list[str]:
    """What others claim stands apart."""
    if not report.imported_count:
        return []
    return [
        f"claimed  {report.imported_count} experiments were imported: others claim them, "
        "nobody measured them here, and nothing above counts them"
    ]


def format_experiment_counts(report: Report) -> str:
    """Experiments and runs."""
    kinds = Counter(row.kind for row in report.rows if row.decision == "failed")
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return format_counts(report.counts) + (f" ({why})" if why else "")


def format_training_share(report: Report) -> str:
    """How much of the wall clock went into training."""
    if not report.wall_seconds:
        return "0 %"
    return f"{100 * report.trained_seconds / report.wall_seconds:.0f} %"


def format_clock(seconds: float) -> str:
    """8 h 05 min, 12 min 30 s."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def list_unknowns(report: Report) -> list[str]:
    """What this report does not know."""
    return [
        *list_noise_unknowns(report),
        *list_holdout_unknowns(report),
        *list_other_unknowns(report),
    ]


def list_noise_unknowns(report: Report) -> list[str]:
    """What is not known of luck."""
    found, known = report.summary, report.summary.noise
    said = []
    if known is None:
        said.append(
            "How noisy a score is: nothing ran twice. Near the end of a night about "
            "half of what is kept after one run each is luck."
        )
    elif known.degrees < FEW_DEGREES_OF_FREEDOM and known.sd > 0:
        said.append(
            f"How noisy a score is, well: it rests on {known.degrees:.0f} differences."
        )
    if known is not None and known.sd > 0 and found.has_heavy_tails is None:
        said.append("Whether the noise has heavy tails: too few runs.")
    if found.drift is not None:
        said.append("How much of the gain is the drift of this machine.")
    if found.champion is not found.baseline and found.certificate is None:
        said.append(
            "Whether the gain comes again on fresh seeds: autoresearch replicate was "
            "not run for this champion."
        )
    if any(kept.change_count > 1 for kept in report.kept_changes):
        said.append(
            "Which of the changes on the way to a champion did it: autoresearch ablate."
        )
    return said


def list_holdout_unknowns(report: Report) -> list[str]:
    """What is not known of the fit to the validation text."""
    found, certified = report.summary.holdout, report.summary.certificate
    if certified is not None and certified.gap_low is not None:
        return []
    if found is None and (certified is None or certified.gap is None):
        return [
            "How far the night overfitted its validation set: the holdout is sealed "
            "and was not scored for both the baseline and a champion."
        ]
    if found is None or found.low is None:
        return [
            "How certain the gap to the holdout is: the scatter between runs is not "
            "known."
        ]
    return []


def list_other_unknowns(report: Report) -> list[str]:
    """What no night of this kind can know, and what this one did not ask."""
    early, level = (
        report.summary.early_stopping,
        report.series_facts.get("cage", "none"),
    )
    said = []
    if early.ended and early.false_kills is None:
        said.append("How many runs were ended falsely: none was spared yet.")
    if report.imported_count:
        said.append("Whether what others claim is true: nobody measured it here.")
    if level == "none":
        said.append(
            "What a train.py at cage level 'none' read besides its text: it ran as "
            "you, with a clock and limits but no walls."
        )
    else:
        said.append(
            f"What a train.py did inside its cage (level {level!r}): seconds of hidden "
            "training at start-up and serving remain possible."
        )
    if report.unpriced_answers:
        count = report.unpriced_answers
        said.append(f"What {count} answers of models or agents cost: they do not say.")
    return [
        *said,
        "What it cost in energy: it is not measured.",
        "Whether the gain holds at another budget, size, text or machine.",
    ]
