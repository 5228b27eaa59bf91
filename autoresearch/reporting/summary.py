"""What a night amounts to, in numbers: read from the ledger, for the report.

Gain with its interval, how much of the plain difference was luck, the noise, near
misses, champions taken back, runs ended early, validation against holdout, and the
certificate of `replicate`. Everything is about the present series.

Promises: a number that the ledger cannot give is None, and `why_no_claim` or the report
says so. Runs made to replicate do not enter gain, luck and holdout, so that they can
confirm or contradict them; they do enter the noise.

Not covered: texts that differ in kind from the two that were sealed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from autoresearch.experiment import Noise, Row, RunRecord
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger, Reversion
from autoresearch.stats import early_stopping, gain, noise, quantiles
from autoresearch.stats.early_stopping import FalsePruneRate
from autoresearch.stats.history import Evidence
from autoresearch.stats.noise import Drift, GainEstimate
from autoresearch.stats.paired import Certificate


@dataclass(frozen=True, slots=True)
class HoldoutComparison:
    """The same gain on two sealed texts."""

    gain: float  # on validation, of the runs that were scored on both
    holdout_gain: float
    gap: float  # the first less the second; above 0: part of it fits one text only
    low: float | None  # 95 % interval of the gap; None: the scatter is not known
    high: float | None
    champion_runs: int
    baseline_runs: int


@dataclass(frozen=True, slots=True)
class EarlyStoppingSavings:
    """What ending hopeless runs saved, and what it may have cost."""

    ended: int
    saved_seconds: float  # of training, by what a whole run takes on average
    saved_share: float  # of what all runs would have trained
    false_kills: FalsePruneRate | None  # None: nothing was spared yet, so nobody knows


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """Everything about the present series that is computed, not only counted."""

    baseline: Row | None  # None: nothing was measured yet
    champion: Row | None
    baseline_mean: float | None  # baseline's mean over the night's own runs
    champion_mean: float | None  # champion's
    raw_gain: float | None  # the plain difference; positive is better
    gain_estimate: GainEstimate | None  # what is believed of it; None: see why_no_claim
    no_estimate_reason: str
    noise: Noise | None  # None: nothing ran twice
    has_heavy_tails: bool | None  # None: too few runs to say
    drift: Drift | None  # None: none beyond doubt
    near_misses: tuple[Row, ...]  # near misses, the best first
    reverted: tuple[Reversion, ...]
    champion_steps: tuple[
        tuple[int, int], ...
    ]  # (champion, changes since the one before)
    early_stopping: EarlyStoppingSavings
    holdout: HoldoutComparison | None  # None: baseline or champion was not scored there
    certificate: Certificate | None  # None: nobody ran `replicate`

    @property
    def shrinkage(self) -> float | None:
        """How much of the plain difference is not believed."""
        if self.raw_gain is None or self.gain_estimate is None:
            return None
        return self.raw_gain - self.gain_estimate.gain


def summarize_series(ledger: Ledger) -> SeriesSummary:
    """All of it."""
    series = ledger.series or ledger.find_last_series()
    told = queries.load_evidence(ledger)
    rows, champions = told.rows, told.champions
    by_number = {row.number: row for row in rows}
    first = ledger.find_first_keep(series)
    baseline = by_number[first] if first is not None else None
    champion = by_number[champions[-1].number] if champions else None
    scored = [row for row in told.adjust_rows() if row.values]
    replicates = [row.values for row in scored]
    known = told.effects.noise
    tonight = Evidence(load_session_rows(ledger, rows), champions)
    fair = tonight.adjust_rows()
    before, after = (find_row_mean(fair, row) for row in (baseline, champion))
    raw = None
    if before is not None and after is not None:
        raw = before - after if ledger.lower_is_better else after - before
    claim, why = estimate_gain(
        tonight, baseline, champion, known, ledger.lower_is_better
    )
    sign = 1 if ledger.lower_is_better else -1
    better = [
        r for r in rows if r.decision == "unresolved" and sign * (r.delta or 0.0) < 0
    ]
    near = sorted(better, key=lambda row: sign * (row.delta or 0.0))
    certified = None
    if baseline is not None and champion is not None:
        certified = queries.load_certificate(ledger, champion.number, baseline.number)
    return SeriesSummary(
        *(baseline, champion, before, after, raw, claim, why, known),
        noise.has_heavy_tails(replicates),
        noise.detect_drift(replicates, [row.when for row in scored]),
        tuple(near),
        tuple(
            back
            for back in ledger.load_reversions()
            if back.reverted_number in by_number
        ),
        count_champion_steps(rows, [champion.number for champion in champions]),
        summarize_early_stopping(ledger, series, rows),
        compare_holdout_gain(ledger, rows, baseline, champion),
        certified,
    )


def load_session_rows(ledger: Ledger, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without the runs that were made to replicate a gain afterwards."""
    again = queries.load_replicated_numbers(ledger)
    return tuple(
        drop_replicate_runs(ledger, row) if row.number in again else row for row in rows
    )


def drop_replicate_runs(ledger: Ledger, row: Row) -> Row:
    """An experiment as the night itself knows it."""
    runs = load_session_runs(ledger, row.number)
    values, seeds = (tuple(run.value for run in runs), tuple(run.seed for run in runs))
    when = tuple(run.ended_at for run in runs if run.ended_at is not None)
    return replace(row, values=values, seeds=seeds, when=when)


def load_session_runs(ledger: Ledger, number: int) -> list[RunRecord]:
    """An experiment's runs in the night itself."""
    return [
        run for run in ledger.load_run_records(number) if run.occasion != "replicate"
    ]


def find_row_mean(rows: Sequence[Row], wanted: Row | None) -> float | None:
    """An experiment's mean over the runs of these rows."""
    for row in rows:
        if wanted is not None and row.number == wanted.number:
            return fmean(row.values) if row.values else None
    return None


def estimate_gain(
    tonight: Evidence,
    baseline: Row | None,
    champion: Row | None,
    known: Noise | None,
    lower_is_better: bool,
) -> tuple[GainEstimate | None, str]:
    """What may be claimed of the gain, or why nothing may."""
    if baseline is None or champion is None:
        return None, "nothing was measured yet"
    if champion.number == baseline.number:
        return None, "nothing was kept"
    if known is None:
        return None, "nothing ran twice, so the noise is not measured"
    if known.sd == 0:
        return None, "runs of the same train.py do not differ: the difference is exact"
    found = gain.estimate_champion_gain(
        tonight.measured_experiments,
        champion.blob,
        baseline.blob,
        lower_is_better=lower_is_better,
    )
    return found, "" if found else "baseline or champion has no score here"


def count_champion_steps(
    rows: Sequence[Row], champions: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """How many experiments lie between two champions on the line, itself included.

    What was tried step by step on the way to a champion is one kept change, of several.
    """
    by_blob = {row.blob: row for row in rows if row.decision != "failed"}
    by_number = {row.number: row for row in rows}
    reigned: set[str] = set()
    found = []
    for number in champions:
        row, steps, seen = by_number[number], 1, {by_number[number].blob}
        while row.parent in by_blob and row.parent not in reigned | seen:
            seen.add(row.parent)
            row, steps = by_blob[row.parent], steps + 1
        found.append((number, steps))
        reigned.add(by_number[number].blob)
    return tuple(found)


def summarize_early_stopping(
    ledger: Ledger, series: str, rows: Sequence[Row]
) -> EarlyStoppingSavings:
    """What ending hopeless runs saved, as if each had taken what others take."""
    shares = queries.load_pruned_shares(ledger, series)
    runs, seconds = sum(row.runs for row in rows), sum(row.seconds for row in rows)
    each = seconds / runs if runs else 0.0
    saved = each * sum(1 - share for share in shares)
    whole = seconds + each * len(shares)
    won = [
        beaten
        for _, beaten in queries.load_finished_runs(ledger, series)
        if beaten is not None
    ]
    return EarlyStoppingSavings(
        len(shares),
        saved,
        saved / whole if whole else 0.0,
        early_stopping.estimate_false_prunes(won, len(shares)),
    )


def compare_holdout_gain(
    ledger: Ledger, rows: Sequence[Row], baseline: Row | None, champion: Row | None
) -> HoldoutComparison | None:
    """Gain on validation against gain on the holdout, by the same runs.

    A run's two scores share the luck of its training, so what counts is the scatter of
    their difference: pooled over all train.py with several such runs, and never less
    than what the audit alone leaves open in both.
    """
    if baseline is None or champion is None or baseline.number == champion.number:
        return None
    first, last = (
        load_holdout_runs(ledger, row.number) for row in (baseline, champion)
    )
    if not first or not last:
        return None
    sign = 1 if ledger.lower_is_better else -1
    gain = sign * (fmean(r.value for r in first) - fmean(r.value for r in last))
    held = sign * (
        fmean(h for _, h in pair_scores(first)) - fmean(h for _, h in pair_scores(last))
    )
    gap = gain - held
    kept = [row.number for row in rows if row.decision == "keep"]
    scatter = noise.estimate_pooled_noise(
        [
            [value - h for value, h in pair_scores(load_holdout_runs(ledger, n))]
            for n in kept
        ]
    )
    low = high = None
    if scatter is not None:
        audit = 2 * fmean(run.error**2 for run in (*first, *last))
        error = math.sqrt(max(scatter.sd**2, audit) * (1 / len(first) + 1 / len(last)))
        half = error * quantiles.t_quantile_95(int(scatter.degrees))
        low, high = gap - half, gap + half
    return HoldoutComparison(gain, held, gap, low, high, len(last), len(first))


def load_holdout_runs(ledger: Ledger, number: int) -> list[RunRecord]:
    """An experiment's own runs that were scored on the holdout too."""
    return [run for run in load_session_runs(ledger, number) if run.holdout is not None]


def pair_scores(runs: Sequence[RunRecord]) -> list[tuple[float, float]]:
    """(validation, holdout) of every run that has both."""
    return [(run.value, run.holdout) for run in runs if run.holdout is not None]
