"""What a policy may know of a series: every score, without the luck of its seed.

    Ledger --of--> Evidence --history--> History        (and `fair` for a candidate)

The ledger holds scores as they were measured; policies compare what is left when the
luck of the seeds is taken out (`seeds`). Never the holdout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from autoresearch.experiment import (
    Champion,
    CodeSizeChange,
    History,
    Row,
    Score,
    Scores,
)
from autoresearch.stats import gain, seed_effects
from autoresearch.stats.seed_effects import SeedEffects


@dataclass(frozen=True, slots=True)
class Evidence:
    """The decided experiments of one series, and who reigned, as they were measured."""

    rows: tuple[Row, ...]
    champions: tuple[Champion, ...]  # the last one reigns

    @property
    def effects(self) -> SeedEffects:
        """What each seed adds to a score."""
        return seed_effects.estimate_seed_effects(
            [seed_scores_from_row(row) for row in self.rows]
        )

    def adjust_rows(self) -> tuple[Row, ...]:
        """The rows with scores that can be compared with each other."""
        luck = self.effects
        return tuple(adjust_row(row, luck) for row in self.rows)

    def adjust_scores(self, scores: Scores) -> Scores:
        """The same for a candidate that has no row yet."""
        of = self.effects.by_seed
        return tuple(
            replace(score, value=score.value - of.get(score.run.seed, 0.0))
            for score in scores
        )

    def build_history(self, change: CodeSizeChange | None = None) -> History:
        """What a policy may know."""
        luck, rows = self.effects, self.adjust_rows()
        scored = [row for row in rows if row.values]
        values = {row.number: row.values for row in scored}
        champions = tuple(
            replace(one, values=values.get(one.number, one.values))
            for one in self.champions
        )
        return History(
            champions[-1] if champions else None,
            tuple(row.values for row in scored),
            tuple(row.when for row in scored),
            sum(row.against is not None for row in rows),
            champions[:-1],
            tuple(row.number for row in rows if row.decision == "unresolved"),
            rows,
            change,
            luck.noise,
        )

    @property
    def measured_experiments(self) -> tuple[gain.MeasuredExperiment, ...]:
        """The same for `gains`: every experiment that has a score."""
        return tuple(
            gain.MeasuredExperiment(row, seed_scores_from_row(row), row.when)
            for row in self.rows
            if row.values
        )

    def plan_gain_runs(self, *, lower_is_better: bool) -> tuple[str, ...]:
        """Whose runs a claim on the champion still needs; none: it is sure enough."""
        if len(self.champions) < 2:
            return ()
        last, first = self.champions[-1].blob, self.champions[0].blob
        return gain.plan_gain_runs(
            self.measured_experiments, last, first, lower_is_better=lower_is_better
        )

    def with_champion_run(self, score: Score) -> "Evidence":
        """The same after one more run of the champion, which the ledger has not yet."""
        champion = self.champions[-1]
        values = (*champion.values, score.value)
        grown = replace(champion, values=values, fresh=champion.fresh + 1)
        rows = tuple(
            replace(
                row,
                values=values,
                value=fmean(values),
                seeds=(*row.seeds, score.run.seed),
                when=(*row.when, score.ended_at or 0.0),
            )
            if row.number == champion.number
            else row
            for row in self.rows
        )
        return Evidence(rows, (*self.champions[:-1], grown))


def seed_scores_from_row(row: Row) -> seed_effects.SeedScores:
    """(seed, score) of every run; a seed that is not known is nobody else's."""
    return tuple(
        (seed or -1 - (row.number << 16) - place, value)
        for place, (seed, value) in enumerate(zip(row.seeds, row.values, strict=True))
    )


def adjust_row(row: Row, luck: SeedEffects) -> Row:
    """A row without the luck of its seeds."""
    if not row.values:
        return row
    values = luck.adjust_scores(seed_scores_from_row(row))
    return replace(row, values=values, value=fmean(values))


def compute_change_effects(rows: Sequence[Row]) -> dict[int, float]:
    """What each change did to the score: its value less its parent's, by experiment.

    Not `Row.delta`, which is against the champion: a proposal may start from something
    that promises more. Where the parent was not measured, that is all there is.
    """
    # By series: the same file scores otherwise with another budget or another text.
    values = {
        (row.series, row.blob): row.value for row in rows if row.value is not None
    }
    found = {}
    for row in rows:
        if row.value is None or row.delta is None:
            continue
        before = values.get((row.series, row.parent))
        found[row.number] = row.delta if before is None else row.value - before
    return found
