"""What a policy may know of a series: every score, with seed effects subtracted.

    ledger --load_evidence--> Evidence --build_history--> History

The ledger holds scores as they were measured; policies compare adjusted scores
(`seed_effects`). `Evidence.adjust_scores` does the same for a candidate without a
verdict. Holdout scores never get in here.
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
    """The decided experiments and champions of one series, as they were measured."""

    rows: tuple[Row, ...]
    champions: tuple[Champion, ...]  # oldest first, the last one is current

    @property
    def effects(self) -> SeedEffects:
        """The seed effects of the series."""
        return seed_effects.estimate_seed_effects(
            [seed_scores_from_row(row) for row in self.rows]
        )

    def adjust_rows(self) -> tuple[Row, ...]:
        """The rows with adjusted scores, which can be compared with each other."""
        effects = self.effects
        return tuple(adjust_row(row, effects) for row in self.rows)

    def adjust_scores(self, scores: Scores) -> Scores:
        """Adjusted scores of a candidate that has no row yet."""
        by_seed = self.effects.by_seed
        return tuple(
            replace(score, value=score.value - by_seed.get(score.run.seed, 0.0))
            for score in scores
        )

    def build_history(self, change: CodeSizeChange | None = None) -> History:
        """The history for a policy; change: of the candidate in hand."""
        effects, rows = self.effects, self.adjust_rows()
        scored = [row for row in rows if row.values]
        values = {row.number: row.values for row in scored}
        champions = tuple(
            replace(champion, values=values.get(champion.number, champion.values))
            for champion in self.champions
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
            effects.noise,
        )

    @property
    def measured_experiments(self) -> tuple[gain.MeasuredExperiment, ...]:
        """Every experiment that has a score, for `gain`."""
        return tuple(
            gain.MeasuredExperiment(row, seed_scores_from_row(row), row.when)
            for row in self.rows
            if row.values
        )

    def plan_gain_runs(self, *, lower_is_better: bool) -> tuple[str, ...]:
        """Blobs to run again until the gain's standard error is small enough."""
        if len(self.champions) < 2:
            return ()
        last, first = self.champions[-1].blob, self.champions[0].blob
        return gain.plan_gain_runs(
            self.measured_experiments, last, first, lower_is_better=lower_is_better
        )

    def with_champion_run(self, score: Score) -> "Evidence":
        """The evidence after one more run of the champion, not in the ledger yet."""
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
    """(seed, score) of every run; an unknown seed gets a number of its own."""
    return tuple(
        (seed or -1 - (row.number << 16) - place, value)
        for place, (seed, value) in enumerate(zip(row.seeds, row.values, strict=True))
    )


def adjust_row(row: Row, effects: SeedEffects) -> Row:
    """A row with its seed effects subtracted."""
    if not row.values:
        return row
    values = effects.adjust_scores(seed_scores_from_row(row))
    return replace(row, values=values, value=fmean(values))


def compute_change_effects(rows: Sequence[Row]) -> dict[int, float]:
    """The effect of each change, by experiment: its value less its parent's.

    Not `Row.delta`, which is against the champion: a proposal may start from another
    blob. Where the parent was not measured, the effect is `Row.delta`.
    """
    # By series: with another budget or text the same file has another score.
    values = {
        (row.series, row.blob): row.value for row in rows if row.value is not None
    }
    effects = {}
    for row in rows:
        if row.value is None or row.delta is None:
            continue
        before = values.get((row.series, row.parent))
        effects[row.number] = row.delta if before is None else row.value - before
    return effects
