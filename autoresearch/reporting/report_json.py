"""The report as JSON: the contract of `autoresearch report --json`."""

from dataclasses import asdict
from typing import Any

from autoresearch.experiment import Row
from autoresearch.reporting.report_text import Report, list_unknowns
from autoresearch.reporting.summary import SeriesSummary
from autoresearch.text import to_one_line


def report_to_json(report: Report) -> dict[str, Any]:
    """Every number of the report as one object."""
    summary = report.summary
    return {
        "metric": report.metric,
        "lower_is_better": report.lower_is_better,
        "series": report.series,
        "baseline": experiment_to_json(summary.baseline, summary.baseline_mean),
        "champion": experiment_to_json(summary.champion, summary.champion_mean),
        "gain": gain_to_json(summary),
        "noise": None if summary.noise is None else asdict(summary.noise),
        "heavy_tails": summary.has_heavy_tails,
        "drift": None if summary.drift is None else asdict(summary.drift),
        "certificate": summary.certificate and summary.certificate.to_json(),
        "holdout": None if summary.holdout is None else asdict(summary.holdout),
        "counts": dict(report.counts),
        "kept": [
            {**change_to_json(kept.row), "changes": kept.change_count}
            for kept in report.kept_changes
        ],
        "near_misses": [change_to_json(row) for row in summary.near_misses],
        "taken_back": [
            {
                "experiment": back.reverted_number,
                "instead": back.restored_number,
                "why": back.why,
            }
            for back in summary.reverted
        ],
        "early_kill": asdict(summary.early_stopping),
        "wall_seconds": report.wall_seconds,
        "trained_seconds": report.trained_seconds,
        "scored_seconds": report.scored_seconds,
        "dollars": report.dollars,
        "unknown": list_unknowns(report),
    }


def experiment_to_json(row: Row | None, value: float | None) -> dict[str, Any] | None:
    """Baseline or champion; `value` is the mean of the night's own runs."""
    if row is None:
        return None
    return {"experiment": row.number, "runs": row.runs, "value": value}


def gain_to_json(summary: SeriesSummary) -> dict[str, Any]:
    """The estimated gain with its interval, and the plain difference."""
    estimate = summary.gain_estimate
    return {
        "claimed": None if estimate is None else estimate.gain,
        "low": None if estimate is None else estimate.low,
        "high": None if estimate is None else estimate.high,
        "why_not": summary.no_estimate_reason,
        "raw": summary.raw_gain,
        "luck": summary.shrinkage,
    }


def change_to_json(row: Row) -> dict[str, Any]:
    """One kept change or near miss."""
    return {
        "experiment": row.number,
        "title": to_one_line(row.title),
        "on_top_of": list(row.unproven_ancestors),
        "delta": row.delta,
        "runs": row.runs,
    }
