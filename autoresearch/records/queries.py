"""What the statistics need, read from the ledger."""

from collections.abc import Iterator

from autoresearch.experiment import Row
from autoresearch.lab import near_duplicates
from autoresearch.records.ledger import Ledger
from autoresearch.stats import paired
from autoresearch.stats.history import Evidence
from autoresearch.stats.paired import Certificate, Pair


def of(ledger: Ledger, series: str | None = None) -> Evidence:
    """Everything of a series; None: of the present one."""
    name = series or ledger.series or ledger.last_series()
    rows = tuple(row for row in ledger.rows() if row.series == name)
    return Evidence(rows, ledger.champions(name))


def all_rows(ledger: Ledger) -> tuple[Row, ...]:
    """Every row of the ledger; those of the present series without luck."""
    fair = {row.number: row for row in of(ledger).fair_rows()}
    return tuple(fair.get(row.number, row) for row in ledger.rows())


def pairs_of(ledger: Ledger, champion: int, baseline: int) -> tuple[Pair, ...]:
    """The replicated runs of two experiments, paired by seed."""
    if champion == baseline:
        return ()
    runs = ledger.measured(champion), ledger.measured(baseline)
    return paired.pairs_of(*runs, lower_is_better=ledger.lower_is_better)


def certificate(ledger: Ledger, champion: int, baseline: int) -> Certificate | None:
    """The certificate of two experiments; None: no seed was replicated by both."""
    pairs = pairs_of(ledger, champion, baseline)
    return paired.certified(champion, baseline, pairs)


def siblings(ledger: Ledger, parent: str) -> Iterator[tuple[int, str]]:
    """(number, train.py) of what was run from one parent in this series, newest first.

    In another series the same change may be worth it, so those are left out.
    """
    for row in reversed(ledger.rows()):
        if row.parent != parent or row.kind in ("refused", "duplicate"):
            continue
        if not ledger.series or row.series == ledger.series:
            yield row.number, ledger.source(row.blob)


def near_twin(ledger: Ledger, source: str, parent: str) -> str:
    """What a train.py nearly repeats, in a few words; "" when it is new."""
    before = ledger.source(parent)
    number = near_duplicates.find_near_duplicate(source, before, siblings(ledger, parent))
    return "" if number is None else f"next to nothing apart from experiment {number}"
