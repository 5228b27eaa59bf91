"""The morning report as JSON."""

from dataclasses import asdict
from typing import Any

from autoresearch.experiment import Row
from autoresearch.reporting.report_text import Report, list_unknowns
from autoresearch.reporting.summary import SeriesSummary
from autoresearch.text import to_one_line

# -- for machines ----------------------------------------------------------------------


def report_to_json(report: Report) -> dict[str, Any]:
    """Every number of the report as one object: the `report --json` contract."""
    found = report.summary
    return {
        "metric": report.metric,
        "lower_is_better": report.lower_is_better,
        "series": report.series,
        "baseline": experiment_to_json(found.baseline, found.baseline_mean),
        "champion": experiment_to_json(found.champion, found.champion_mean),
        "gain": gain_to_json(found),
        "noise": None if found.noise is None else asdict(found.noise),
        "heavy_tails": found.has_heavy_tails,
        "drift": None if found.drift is None else asdict(found.drift),
        "certificate": found.certificate and found.certificate.to_json(),
        "holdout": None if found.holdout is None else asdict(found.holdout),
        "counts": dict(report.counts),
        "kept": [
            {**change_to_json(kept.row), "changes": kept.change_count}
            for kept in report.kept_changes
        ],
        "near_misses": [change_to_json(row) for row in found.near_misses],
        "taken_back": [
            {
                "experiment": back.reverted_number,
                "instead": back.restored_number,
                "why": back.why,
            }
            for back in found.reverted
        ],
        "early_kill": asdict(found.early_stopping),
        "wall_seconds": report.wall_seconds,
        "trained_seconds": report.trained_seconds,
        "scored_seconds": report.scored_seconds,
        "dollars": report.dollars,
        "unknown": list_unknowns(report),
    }


def experiment_to_json(row: Row | None, value: float | None) -> dict[str, Any] | None:
    """Baseline or champion, by the night's own runs."""
    if row is None:
        return None
    return {"experiment": row.number, "runs": row.runs, "value": value}


def gain_to_json(found: SeriesSummary) -> dict[str, Any]:
    """What is believed of the gain, and the plain difference beside it."""
    claim = found.gain_estimate
    return {
        "claimed": None if claim is None else claim.gain,
        "low": None if claim is None else claim.low,
        "high": None if claim is None else claim.high,
        "why_not": found.no_estimate_reason,
        "raw": found.raw_gain,
        "luck": found.shrinkage,
    }


def change_to_json(row: Row) -> dict[str, Any]:
    """One change that was tried."""
    return {
        "experiment": row.number,
        "title": to_one_line(row.title),
        "on_top_of": list(row.unproven_ancestors),
        "delta": row.delta,
        "runs": row.runs,
    }
