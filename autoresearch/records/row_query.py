"""The query that reads one decided experiment as a Row."""

import json
from statistics import fmean
from typing import Any

from autoresearch.experiment import (
    Facts,
    Row,
)


class ExactFloatList:
    """`reals(x)`: numbers as a JSON list, each digit for digit what is stored.

    SQLite's own json_group_array cuts them to 15 digits, and then a commit that has
    them all seems to say another score.
    """

    def __init__(self) -> None:
        self._values: list[float] = []

    def step(self, value: float) -> None:
        """One more."""
        self._values.append(value)

    def finalize(self) -> Any:  # typeshed knows only those that end in an int
        """All of them."""
        return json.dumps(self._values)


# From what an experiment started from back to a champion's train.py: the experiments
# on the way, which brought changes that this one has besides its own. A plus keeps
# SQLite from any index but that of blobs: with another, it took 2 ms a row.
UNPROVEN_ANCESTORS_QUERY = """
    (with recursive line(number, blob, parent) as (
         select number, blob, parent from experiment where blob = {parent}
         and +series = {series} and +decision = 'discard' and +sequence < {before}
         union
         select p.number, p.blob, p.parent
         from line join experiment p on p.blob = line.parent
         where +p.series = {series} and +p.decision = 'discard'
         and p.number < line.number
         and not exists (select 1 from experiment k where k.blob = line.blob
                         and +k.decision = 'keep' and +k.series = {series}
                         and +k.sequence < {before}))
     select json_group_array(number) from line
     where not exists (select 1 from experiment k where k.blob = line.blob
                       and +k.decision = 'keep' and +k.series = {series}
                       and +k.sequence < {before}))
"""
# The columns are Row's fields in Row's order; the plural ones are JSON here.
ROW_QUERY = """
    select e.number, e.title, e.reason, e.author, e.parent, e.blob, e.program,
           e.series, coalesce(e.outcome, e.decision), e.why, e.kind, e.value,
           e.delta, e.against,
           count(r.id),
           coalesce(reals(r.value) filter (where r.id is not null), '[]'),
           coalesce(reals(r.ended_at) filter (where r.ended_at is not null), '[]'),
           json_group_array(r.seed) filter (where r.id is not null),
           total(r.seconds), total(r.evaluation_seconds), max(r.memory_gb),
           (select facts from run where experiment = e.number order by id desc limit 1),
           (select health from run where experiment = e.number
            order by id desc limit 1),
           e.proposed_at, e.decided_at, e.commit_name, e.log, e.evidence,
           /* way */,
           e.sequence
    from experiment e left join run r on r.experiment = e.number
""".replace(
    "/* way */",
    UNPROVEN_ANCESTORS_QUERY.format(
        parent="e.parent", series="e.series", before="e.sequence"
    ),
)


def parse_number_list(numbers: str) -> tuple[int, ...]:
    """A JSON list of experiments, each once, the oldest first."""
    return tuple(sorted(set(json.loads(numbers))))


def parse_facts_column(text: str | None) -> Facts:
    """Facts as a column holds them."""
    return tuple((key, value) for key, value in json.loads(text or "[]"))


def row_from_columns(found: tuple[Any, ...]) -> Row:
    """A line of the ROW query -> Row."""
    values, when = tuple(json.loads(found[15])), tuple(json.loads(found[16]))
    fields = (
        *found[:11],
        fmean(values) if values else found[11],
        *found[12:15],
        values,
        when if len(when) == len(values) else (),
        tuple(json.loads(found[17])),
        *found[18:21],
        parse_facts_column(found[21]),
        parse_facts_column(found[22]),
        *found[23:28],
        parse_number_list(found[28]),
    )
    return Row(*fields)
