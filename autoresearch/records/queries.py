"""What the statistics need, read from the ledger."""

from collections.abc import Iterator

from autoresearch.experiment import Row
from autoresearch.lab import near_duplicates
from autoresearch.records.ledger import Ledger
from autoresearch.stats import paired
from autoresearch.stats.history import Evidence
from autoresearch.stats.paired import Certificate, PairedGain


def load_evidence(ledger: Ledger, series: str | None = None) -> Evidence:
    """Everything of a series; None: of the present one."""
    name = series or ledger.series or ledger.find_last_series()
    rows = tuple(row for row in ledger.load_rows() if row.series == name)
    return Evidence(rows, ledger.load_champions(name))


def adjusted_rows(ledger: Ledger) -> tuple[Row, ...]:
    """Every row of the ledger; those of the present series without luck."""
    fair = {row.number: row for row in load_evidence(ledger).adjust_rows()}
    return tuple(fair.get(row.number, row) for row in ledger.load_rows())


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


def load_siblings(ledger: Ledger, parent: str) -> Iterator[tuple[int, str]]:
    """(number, train.py) of what was run from one parent in this series, newest first.

    In another series the same change may be worth it, so those are left out.
    """
    for row in reversed(ledger.load_rows()):
        if row.parent != parent or row.kind in ("refused", "duplicate"):
            continue
        if not ledger.series or row.series == ledger.series:
            yield row.number, ledger.load_source(row.blob)


def describe_near_duplicate(ledger: Ledger, source: str, parent: str) -> str:
    """What a train.py nearly repeats, in a few words; "" when it is new."""
    before = ledger.load_source(parent)
    number = near_duplicates.find_near_duplicate(
        source, before, load_siblings(ledger, parent)
    )
    return "" if number is None else f"next to nothing apart from experiment {number}"
