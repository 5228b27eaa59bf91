"""`autoresearch replay`: a recorded or imported night, decided again by another policy.

Says which verdicts would be others, why, and where the policy would have asked for a
run that nobody made. Reads only.

Not covered: what the other policy would have found, as it would have proposed from
elsewhere (the lineage is the recorded one); the price of lines; learning curves. All
runs of an experiment count at once, also those that its champion got later, and the
luck of seeds is what the whole series shows, which the night itself learned bit by bit.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from autoresearch.errors import LabError, NotReady
from autoresearch.experiment import Row
from autoresearch.policies import Policy
from autoresearch.policies.replay import replay_verdicts
from autoresearch.records.ledger import Ledger
from autoresearch.stats.history import Evidence
from autoresearch.text import to_one_line

OUTCOMES = ("keep", "discard", "unresolved")


@dataclass(frozen=True, slots=True)
class ChangedVerdict:
    """A verdict that would be another."""

    experiment: int
    title: str
    recorded: str
    replayed: str
    why: str
    missing: bool  # it would have asked for a run that nobody made


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A night under another policy."""

    series: str
    policy: str
    claimed: bool  # imported, not measured here
    experiments: int  # with a score
    runs: int
    without_score: int  # failed or ended early: nothing to decide again
    recorded: Mapping[str, int]
    replayed: Mapping[str, int]
    missing: int  # experiments that lack a run it would have asked for
    changed: tuple[ChangedVerdict, ...]

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {**asdict(self), "changed": [asdict(one) for one in self.changed]}


def replay(
    ledger: Ledger, policy: Policy, name: str, series: str | None
) -> ReplayResult:
    """Decide a series again; the present one when none is named."""
    chosen, rows = select_series(ledger, series)
    scored = [row for row in rows if row.values]
    if not scored:
        raise NotReady(
            f"nothing in series {chosen} has a score. Next: autoresearch run"
        )
    known = Evidence(tuple(scored), ())
    told = replay_verdicts(known.adjust_rows(), policy, known.effects.noise)
    before = [row.decision for row in scored]
    after = [one.decision for one in told]
    changed = tuple(
        ChangedVerdict(
            row.number, to_one_line(row.title), was, now, one.reason, one.missing
        )
        for row, one, was, now in zip(scored, told, before, after, strict=True)
        if was != now
    )
    return ReplayResult(
        chosen,
        name,
        scored[0].evidence == "claimed",
        len(scored),
        sum(len(row.values) for row in scored),
        len(rows) - len(scored),
        count_outcomes(before),
        count_outcomes(after),
        sum(one.missing for one in told),
        changed,
    )


def count_outcomes(words: Sequence[str]) -> dict[str, int]:
    """How often each verdict came."""
    found = Counter(words)
    return {word: found[word] for word in OUTCOMES}


def select_series(ledger: Ledger, series: str | None) -> tuple[str, tuple[Row, ...]]:
    """The series that was asked for, by its name or how it begins, and its rows."""
    everything = (*ledger.load_rows(), *ledger.load_claimed_rows())
    names = list(dict.fromkeys(row.series for row in everything))
    wanted = ledger.find_last_series() if series is None else series
    fitting = [name for name in names if name.startswith(wanted)]
    if wanted in fitting:
        fitting = [wanted]
    if len(fitting) != 1:
        if not names:
            raise NotReady("nothing was decided yet. Next: autoresearch run")
        raise LabError(
            f"{wanted!r} names {len(fitting)} series. Next: autoresearch replay "
            f"--series S, one of: {', '.join(names)}"
        )
    rows = tuple(row for row in everything if row.series == fitting[0])
    return fitting[0], infer_claimed_parents(rows)


def infer_claimed_parents(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Claims with the line they are said to follow: each starts from the last keep."""
    found: list[Row] = []
    best = ""
    for row in rows:
        if row.evidence == "claimed":
            row = replace(row, parent=best)
            best = row.blob if row.decision == "keep" else best
        found.append(row)
    return tuple(found)


def format_replay(found: ReplayResult) -> list[str]:
    """The same for people."""
    what = "claimed by others" if found.claimed else "measured here"
    said = [
        f"series {found.series} ({what}) under {found.policy}: {found.experiments} "
        f"experiments in {found.runs} runs; {found.without_score} without a score",
        *(
            f"{words:<9} {counts['keep']} kept, {counts['discard']} discarded, "
            f"{counts['unresolved']} unresolved"
            for words, counts in (
                ("recorded", found.recorded),
                ("replayed", found.replayed),
            )
        ),
        f"{len(found.changed)} verdicts change; {found.missing} experiments lack a run "
        "that it would have asked for",
    ]
    for one in found.changed:
        lacks = " (lacks a run)" if one.missing else ""
        said.append(
            f"{one.experiment:>4} {one.recorded} -> {one.replayed}{lacks}: "
            f"{to_one_line(one.why)}  [{one.title}]"
        )
    return said
