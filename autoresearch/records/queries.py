"""Reads of the ledger that few callers need: for statistics, single runs, views.

Functions over a Ledger; none of them writes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from autoresearch.experiment import Curve, Row
from autoresearch.lab import near_duplicates
from autoresearch.records.ledger import LEDGER_ONLY_KINDS, Ledger
from autoresearch.records.row_query import parse_facts_column
from autoresearch.records.schema import decompress_source
from autoresearch.stats import early_stopping, paired
from autoresearch.stats.early_stopping import FinishedRun
from autoresearch.stats.history import Evidence
from autoresearch.stats.paired import Certificate, PairedGain


@dataclass(frozen=True, slots=True)
class RunBreakdown:
    """The seconds of one run by phase, and its loss curve."""

    training_seconds: float
    startup_seconds: float
    evaluation_seconds: float
    curve: Curve  # as train.py reported it; empty: it reported none


# -- a series --------------------------------------------------------------------------


def load_evidence(ledger: Ledger, series: str | None = None) -> Evidence:
    """The decided experiments and champions of a series; None: of the current one."""
    name = series or ledger.series or ledger.find_last_series()
    rows = tuple(row for row in ledger.load_rows() if row.series == name)
    return Evidence(rows, ledger.load_champions(name))


def adjusted_rows(ledger: Ledger) -> tuple[Row, ...]:
    """All rows; those of the current series with seed effects subtracted."""
    adjusted = {row.number: row for row in load_evidence(ledger).adjust_rows()}
    return tuple(adjusted.get(row.number, row) for row in ledger.load_rows())


def load_siblings(ledger: Ledger, parent: str) -> Iterator[tuple[int, str]]:
    """(number, train.py) of a parent's experiments in this series, newest first.

    In another series the same change may have another effect, so those are left out.
    """
    for row in reversed(ledger.load_rows()):
        if row.parent != parent or row.kind in LEDGER_ONLY_KINDS:
            continue
        if not ledger.series or row.series == ledger.series:
            yield row.number, ledger.load_source(row.blob)


def describe_near_duplicate(ledger: Ledger, source: str, parent: str) -> str:
    """Which experiment a train.py nearly repeats, in words; "" when it is new."""
    before = ledger.load_source(parent)
    number = near_duplicates.find_near_duplicate(
        source, before, load_siblings(ledger, parent)
    )
    return "" if number is None else f"almost the same as experiment {number}"


# -- replicates ------------------------------------------------------------------------


def load_pairs(ledger: Ledger, champion: int, baseline: int) -> tuple[PairedGain, ...]:
    """The replicated runs of two experiments, paired by seed."""
    if champion == baseline:
        return ()
    runs = ledger.load_run_records(champion), ledger.load_run_records(baseline)
    return paired.pair_by_seed(*runs, lower_is_better=ledger.lower_is_better)


def load_certificate(
    ledger: Ledger, champion: int, baseline: int
) -> Certificate | None:
    """The certificate of two experiments; None: no seed was replicated by both."""
    pairs = load_pairs(ledger, champion, baseline)
    return paired.compute_certificate(champion, baseline, pairs)


def load_replicated_numbers(ledger: Ledger) -> set[int]:
    """Experiments with runs that were made to replicate a gain."""
    query = "select distinct experiment from run where occasion = 'replicate'"
    return {number for (number,) in ledger.db.execute(query)}


# -- single runs -----------------------------------------------------------------------


def load_used_seeds(ledger: Ledger, number: int) -> set[int]:
    """Seeds that an experiment's train.py has run with, under any number."""
    found = ledger.db.execute(
        "select seed from run where experiment in (select number from experiment"
        " where blob = (select blob from experiment where number = ?))",
        (number,),
    )
    return {seed for (seed,) in found}


def load_tokens_per_second(ledger: Ledger, number: int) -> tuple[float, ...]:
    """Tokens per second of an experiment's runs, as train.py counted them."""
    found = ledger.db.execute(
        "select facts, seconds from run where experiment = ? order by id", (number,)
    )
    counted = (
        (dict(parse_facts_column(facts)).get("tokens"), seconds)
        for facts, seconds in found
    )
    return tuple(
        float(tokens) / seconds
        for tokens, seconds in counted
        if isinstance(tokens, int | float) and seconds > 0
    )


def load_last_run(ledger: Ledger, number: int) -> RunBreakdown | None:
    """An experiment's newest run, for proposers; None: it has none."""
    found = ledger.db.execute(
        "select seconds, startup_seconds, evaluation_seconds, curve from run"
        " where experiment = ? order by id desc limit 1",
        (number,),
    ).fetchone()
    if found is None:
        return None
    training, startup, evaluation, curve = found
    points = early_stopping.curve_from_json(curve) if curve else ()
    return RunBreakdown(training, startup, evaluation, points)


# -- early stopping --------------------------------------------------------------------


def load_finished_runs(
    ledger: Ledger, series: str
) -> tuple[tuple[FinishedRun, bool | None], ...]:
    """The first run with a curve of every experiment in a series, oldest first.

    With each: whether it beat its bar although it would have been ended early; None:
    it would not have been.
    """
    sign = 1.0 if ledger.lower_is_better else -1.0
    found = ledger.db.execute(
        "select curve, r.value, schedule, spared, (select p.value from run p"
        " join experiment on number = p.experiment where blob = e.parent"
        " and p.seed = r.seed and p.series = r.series order by p.id limit 1)"
        " from run r join experiment e on e.number = r.experiment"
        " where r.series = ? and curve is not null and occasion = 'verdict'"
        " and id = (select min(id) from run where experiment = r.experiment)"
        " order by id",
        (series,),
    )
    runs: list[tuple[FinishedRun, bool | None]] = []
    for curve, value, schedule, spared, parent in found:
        points = early_stopping.curve_from_json(curve)
        bar = json.loads(spared)["bar"] if spared else None
        won = None if bar is None else sign * value < sign * bar
        runs.append((FinishedRun(points, value, bool(schedule), parent), won))
    return tuple(runs)


def load_pruned_shares(ledger: Ledger, series: str) -> tuple[float, ...]:
    """The share of its budget at which each hopeless run was ended."""
    found = ledger.db.execute(
        "select ended_at_share from experiment where series = ?"
        " and ended_at_share is not null order by sequence",
        (series,),
    )
    return tuple(share for (share,) in found)


# -- texts -----------------------------------------------------------------------------


def load_programs(ledger: Ledger) -> Iterator[str]:
    """Every program.md that a proposal was made under, newest first."""
    found = ledger.db.execute(
        "select text from source join (select program, max(number) as last"
        " from experiment group by program) on blob = program order by last desc"
    )
    return (decompress_source(text) for (text,) in found.fetchall())
