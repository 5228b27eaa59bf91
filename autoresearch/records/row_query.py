"""The query that reads one decided experiment as a Row."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import fields
from operator import itemgetter
from statistics import fmean
from typing import Any

from autoresearch.experiment import Facts, Row

pick_fields = itemgetter(*(field.name for field in fields(Row)))


class ExactFloatList:
    """SQL aggregate `reals(x)`: the values as a JSON list, with all their digits.

    SQLite's json_group_array keeps 15 digits only, and a score read back with 15
    digits would differ from the one in its commit.
    """

    def __init__(self) -> None:
        self._values: list[float] = []

    def step(self, value: float) -> None:
        """Add a value."""
        self._values.append(value)

    def finalize(self) -> Any:  # typeshed allows only int here
        """Return the list."""
        return json.dumps(self._values)


# Follows parents from an experiment's parent back to the train.py of a champion, and
# lists the unproven experiments on that path: this experiment contains their changes
# besides its own. A unary plus keeps SQLite from using any index but the one on blobs;
# with another index the query took 2 ms a row.
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
# Columns are named after Row's fields; plural ones are JSON. `sequence` is not a field:
# it is the position of the verdict, by which a ledger reads on.
ROW_QUERY = """
    select e.number as number,
           e.title as title,
           e.reason as reason,
           e.author as author,
           e.parent as parent,
           e.blob as blob,
           e.program as program,
           e.series as series,
           coalesce(e.outcome, e.decision) as decision,
           e.why as why,
           e.kind as kind,
           e.value as value,
           e.delta as delta,
           e.against as against,
           count(r.id) as runs,
           coalesce(reals(r.value) filter (where r.id is not null), '[]') as "values",
           coalesce(reals(r.ended_at) filter (where r.ended_at is not null), '[]')
               as "when",
           json_group_array(r.seed) filter (where r.id is not null) as seeds,
           total(r.seconds) as seconds,
           total(r.evaluation_seconds) as evaluation_seconds,
           max(r.memory_gb) as memory_gb,
           (select facts from run where experiment = e.number
            order by id desc limit 1) as facts,
           (select health from run where experiment = e.number
            order by id desc limit 1) as health,
           e.proposed_at as proposed_at,
           e.decided_at as decided_at,
           e.commit_name as "commit",
           e.log as log,
           e.evidence as evidence,
           /* unproven ancestors */ as unproven_ancestors,
           e.sequence as sequence
    from experiment e left join run r on r.experiment = e.number
""".replace(
    "/* unproven ancestors */",
    UNPROVEN_ANCESTORS_QUERY.format(
        parent="e.parent", series="e.series", before="e.sequence"
    ),
)


def parse_list(text: str) -> tuple[Any, ...]:
    """A JSON list as a tuple; quick for an empty one, as most are."""
    return tuple(json.loads(text)) if text != "[]" else ()


def parse_number_list(numbers: str) -> tuple[int, ...]:
    """Experiment numbers from a JSON list, ascending and without repeats."""
    return tuple(sorted(set(parse_list(numbers))))


def parse_facts_column(text: str | None) -> Facts:
    """Facts from their JSON column; NULL: none."""
    if not text or text == "[]":
        return ()
    return tuple([(key, value) for key, value in json.loads(text)])


def rows_from_cursor(cursor: sqlite3.Cursor) -> Iterator[tuple[Row, int]]:
    """(row, sequence) of every line of a ROW_QUERY; columns are matched by name."""
    names = [column[0] for column in cursor.description]
    for line in cursor:
        columns = dict(zip(names, line, strict=True))
        yield row_from_columns(columns), columns["sequence"]


def row_from_columns(columns: dict[str, Any]) -> Row:
    """A Row from the columns of one line, by the names of its fields.

    The columns are parsed in place. Picked by name and passed by position: passing 29
    keywords took as long as all the rest.
    """
    values = parse_list(columns["values"])
    when = parse_list(columns["when"])
    columns["values"] = values
    if values:
        columns["value"] = fmean(values)
    columns["when"] = when if len(when) == len(values) else ()
    columns["seeds"] = parse_list(columns["seeds"])
    columns["facts"] = parse_facts_column(columns["facts"])
    columns["health"] = parse_facts_column(columns["health"])
    columns["unproven_ancestors"] = parse_number_list(columns["unproven_ancestors"])
    return Row(*pick_fields(columns))
