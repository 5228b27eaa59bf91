"""The results of the current series in numbers, computed from the ledger.

Gain with its interval, how much of the plain difference is attributed to chance, the
noise, near misses, reverted champions, runs ended early, validation against holdout,
and the certificate of `replicate`.

Promises: a number that the ledger cannot give is None, and `no_estimate_reason` or the
report says why. Runs made by `replicate` do not enter gain, shrinkage and holdout, so
that they can confirm or contradict them; they do enter the noise.

Not covered: texts of another kind than the two sealed splits.
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
    """The same gain on two sealed splits, from the runs that were scored on both."""

    gain: float  # on validation
    holdout_gain: float
    gap: float  # gain - holdout_gain; above 0: part of the gain is overfitting
    low: float | None  # 95 % interval of the gap; None: the scatter is not known
    high: float | None
    champion_runs: int
    baseline_runs: int


@dataclass(frozen=True, slots=True)
class EarlyStoppingSavings:
    """What ending hopeless runs saved, and how many of them were ended wrongly."""

    ended: int
    saved_seconds: float  # of training, if each had taken as long as the average run
    saved_share: float  # of the training time that all runs would have taken
    false_kills: FalsePruneRate | None  # None: no run was exempted yet


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """Everything about the current series that is computed, not only counted."""

    baseline: Row | None  # None: nothing has been measured yet
    champion: Row | None
    baseline_mean: float | None  # over the night's own runs
    champion_mean: float | None
    raw_gain: float | None  # the plain difference; positive is better
    gain_estimate: GainEstimate | None  # None: see no_estimate_reason
    no_estimate_reason: str  # "" if there is an estimate
    noise: Noise | None  # None: nothing ran twice
    has_heavy_tails: bool | None  # None: too few runs to say
    drift: Drift | None  # None: no significant drift
    near_misses: tuple[Row, ...]  # the best first
    reverted: tuple[Reversion, ...]
    champion_steps: tuple[tuple[int, int], ...]  # (champion, changes since the last)
    early_stopping: EarlyStoppingSavings
    holdout: HoldoutComparison | None  # None: baseline or champion was not scored there
    certificate: Certificate | None  # None: `replicate` was not run

    @property
    def shrinkage(self) -> float | None:
        """How much of the plain difference the estimate attributes to chance."""
        if self.raw_gain is None or self.gain_estimate is None:
            return None
        return self.raw_gain - self.gain_estimate.gain


def summarize_series(ledger: Ledger) -> SeriesSummary:
    """Compute everything. Scores are adjusted for seed effects before comparisons."""
    series = ledger.series or ledger.find_last_series()
    evidence = queries.load_evidence(ledger)
    rows, champions = evidence.rows, evidence.champions
    by_number = {row.number: row for row in rows}
    first = ledger.find_first_keep(series)
    baseline = by_number[first] if first is not None else None
    champion = by_number[champions[-1].number] if champions else None
    scored = [row for row in evidence.adjust_rows() if row.values]
    values = [row.values for row in scored]
    session = Evidence(load_session_rows(ledger, rows), champions)
    adjusted = session.adjust_rows()
    before, after = (find_row_mean(adjusted, row) for row in (baseline, champion))
    raw_gain = None
    if before is not None and after is not None:
        raw_gain = before - after if ledger.lower_is_better else after - before
    estimate, no_estimate_reason = estimate_gain(
        session, baseline, champion, evidence.effects.noise, ledger.lower_is_better
    )
    certificate = None
    if baseline is not None and champion is not None:
        certificate = queries.load_certificate(ledger, champion.number, baseline.number)
    return SeriesSummary(
        *(baseline, champion, before, after),
        *(raw_gain, estimate, no_estimate_reason, evidence.effects.noise),
        noise.has_heavy_tails(values),
        noise.detect_drift(values, [row.when for row in scored]),
        rank_near_misses(rows, lower_is_better=ledger.lower_is_better),
        tuple(
            reversion
            for reversion in ledger.load_reversions()
            if reversion.reverted_number in by_number
        ),
        count_champion_steps(rows, [champion.number for champion in champions]),
        summarize_early_stopping(ledger, series, rows),
        compare_holdout_gain(ledger, rows, baseline, champion),
        certificate,
    )


def rank_near_misses(rows: Sequence[Row], *, lower_is_better: bool) -> tuple[Row, ...]:
    """Unresolved experiments that scored better than their champion, best first."""
    sign = 1 if lower_is_better else -1
    better = [
        row
        for row in rows
        if row.decision == "unresolved" and sign * (row.delta or 0.0) < 0
    ]
    return tuple(sorted(better, key=lambda row: sign * (row.delta or 0.0)))


def load_session_rows(ledger: Ledger, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without the runs that `replicate` made afterwards."""
    again = queries.load_replicated_numbers(ledger)
    return tuple(
        drop_replicate_runs(ledger, row) if row.number in again else row for row in rows
    )


def drop_replicate_runs(ledger: Ledger, row: Row) -> Row:
    """A row with only the night's own runs."""
    runs = load_session_runs(ledger, row.number)
    values, seeds = (tuple(run.value for run in runs), tuple(run.seed for run in runs))
    when = tuple(run.ended_at for run in runs if run.ended_at is not None)
    return replace(row, values=values, seeds=seeds, when=when)


def load_session_runs(ledger: Ledger, number: int) -> list[RunRecord]:
    """An experiment's runs, without those that `replicate` made."""
    return [
        run for run in ledger.load_run_records(number) if run.occasion != "replicate"
    ]


def find_row_mean(rows: Sequence[Row], wanted: Row | None) -> float | None:
    """The mean score of `wanted` among these rows; None if it is not there."""
    for row in rows:
        if wanted is not None and row.number == wanted.number:
            return fmean(row.values) if row.values else None
    return None


def estimate_gain(
    session: Evidence,
    baseline: Row | None,
    champion: Row | None,
    known_noise: Noise | None,
    lower_is_better: bool,
) -> tuple[GainEstimate | None, str]:
    """The champion's gain with its interval, or None and the reason."""
    if baseline is None or champion is None:
        return None, "nothing has been measured yet"
    if champion.number == baseline.number:
        return None, "nothing was kept"
    if known_noise is None:
        return None, "nothing ran twice, so the noise is not measured"
    if known_noise.sd == 0:
        return None, "runs of the same train.py do not differ: the difference is exact"
    estimate = gain.estimate_champion_gain(
        session.measured_experiments,
        champion.blob,
        baseline.blob,
        lower_is_better=lower_is_better,
    )
    return estimate, "" if estimate else "baseline or champion has no score here"


def count_champion_steps(
    rows: Sequence[Row], champions: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(champion, experiments since the champion before it, itself included).

    Unresolved steps that a champion was built on are part of its one kept change.
    """
    by_blob = {row.blob: row for row in rows if row.decision != "failed"}
    by_number = {row.number: row for row in rows}
    earlier: set[str] = set()  # blobs of champions so far
    steps = []
    for number in champions:
        row, count, seen = by_number[number], 1, {by_number[number].blob}
        while row.parent in by_blob and row.parent not in earlier | seen:
            seen.add(row.parent)
            row, count = by_blob[row.parent], count + 1
        steps.append((number, count))
        earlier.add(by_number[number].blob)
    return tuple(steps)


def summarize_early_stopping(
    ledger: Ledger, series: str, rows: Sequence[Row]
) -> EarlyStoppingSavings:
    """What ending hopeless runs saved, assuming each would have taken the average."""
    shares = queries.load_pruned_shares(ledger, series)
    run_count = sum(row.runs for row in rows)
    seconds = sum(row.seconds for row in rows)
    average = seconds / run_count if run_count else 0.0
    saved = average * sum(1 - share for share in shares)
    total = seconds + average * len(shares)
    # Of each exempted run: whether it beat what it was predicted not to beat.
    won = [
        won for _, won in queries.load_finished_runs(ledger, series) if won is not None
    ]
    return EarlyStoppingSavings(
        len(shares),
        saved,
        saved / total if total else 0.0,
        early_stopping.estimate_false_prunes(won, len(shares)),
    )


def compare_holdout_gain(
    ledger: Ledger, rows: Sequence[Row], baseline: Row | None, champion: Row | None
) -> HoldoutComparison | None:
    """Gain on validation against gain on the holdout, from the same runs.

    A run's two scores share the noise of its training, so the interval rests on the
    scatter of their difference: pooled over every train.py with several such runs, and
    never less than the audit's error in both. None if either was not scored on both.
    """
    if baseline is None or champion is None or baseline.number == champion.number:
        return None
    first, last = (
        load_holdout_runs(ledger, row.number) for row in (baseline, champion)
    )
    if not first or not last:
        return None
    sign = 1 if ledger.lower_is_better else -1
    validation_gain = sign * (
        fmean(run.value for run in first) - fmean(run.value for run in last)
    )
    holdout_gain = sign * (
        fmean(h for _, h in pair_scores(first)) - fmean(h for _, h in pair_scores(last))
    )
    gap = validation_gain - holdout_gain
    kept = [row.number for row in rows if row.decision == "keep"]
    scatter = noise.estimate_pooled_noise(
        [
            [value - h for value, h in pair_scores(load_holdout_runs(ledger, number))]
            for number in kept
        ]
    )
    low = high = None
    if scatter is not None:
        audit = 2 * fmean(run.error**2 for run in (*first, *last))  # a variance
        error = math.sqrt(max(scatter.sd**2, audit) * (1 / len(first) + 1 / len(last)))
        half = error * quantiles.t_quantile_95(int(scatter.degrees))
        low, high = gap - half, gap + half
    return HoldoutComparison(
        validation_gain, holdout_gain, gap, low, high, len(last), len(first)
    )


def load_holdout_runs(ledger: Ledger, number: int) -> list[RunRecord]:
    """An experiment's runs in the night that were scored on the holdout too."""
    return [run for run in load_session_runs(ledger, number) if run.holdout is not None]


def pair_scores(runs: Sequence[RunRecord]) -> list[tuple[float, float]]:
    """(validation, holdout) of every run that has both."""
    return [(run.value, run.holdout) for run in runs if run.holdout is not None]
