"""`autoresearch replay`: decide a recorded or imported night again by another policy.

Lists the verdicts that would change, why, and where the policy would have asked for a
run that was never made. Only reads the ledger.

Not covered: what the other policy would have found, because proposals would have
started from other parents (the lineage is the recorded one); the price of added lines;
learning curves. All runs of an experiment count at once, including those it got later
as champion, and seed effects are estimated from the whole series, while the night
itself had to learn them run by run.
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
    """A verdict that would be different."""

    experiment: int
    title: str
    recorded: str
    replayed: str
    why: str
    missing: bool  # the policy would have asked for a run that was never made


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A series under another policy."""

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
        """The contract of `replay --json`."""
        return {**asdict(self), "changed": [asdict(each) for each in self.changed]}


def replay(
    ledger: Ledger, policy: Policy, name: str, series: str | None
) -> ReplayResult:
    """Decide a series again with a policy called `name`. `series` None: the last one.

    Raises NotReady without scores, LabError if `series` does not name exactly one.
    """
    chosen, rows = select_series(ledger, series)
    scored = [row for row in rows if row.values]
    if not scored:
        raise NotReady(
            f"nothing in series {chosen} has a score. Next: autoresearch run"
        )
    evidence = Evidence(tuple(scored), ())
    verdicts = replay_verdicts(evidence.adjust_rows(), policy, evidence.effects.noise)
    before = [row.decision for row in scored]
    after = [verdict.decision for verdict in verdicts]
    changed = tuple(
        ChangedVerdict(
            *(row.number, to_one_line(row.title), was, now),
            *(verdict.reason, verdict.missing),
        )
        for row, verdict, was, now in zip(scored, verdicts, before, after, strict=True)
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
        sum(verdict.missing for verdict in verdicts),
        changed,
    )


def count_outcomes(decisions: Sequence[str]) -> dict[str, int]:
    """How often each decision occurs."""
    counts = Counter(decisions)
    return {outcome: counts[outcome] for outcome in OUTCOMES}


def select_series(ledger: Ledger, series: str | None) -> tuple[str, tuple[Row, ...]]:
    """A series, by its name or how that begins (None: the last one), and its rows."""
    all_rows = (*ledger.load_rows(), *ledger.load_claimed_rows())
    names = list(dict.fromkeys(row.series for row in all_rows))
    prefix = ledger.find_last_series() if series is None else series
    matches = [name for name in names if name.startswith(prefix)]
    if prefix in matches:
        matches = [prefix]
    if len(matches) != 1:
        if not names:
            raise NotReady("there are no verdicts yet. Next: autoresearch run")
        raise LabError(
            f"{prefix!r} matches {len(matches)} series. Next: autoresearch replay "
            f"--series S, one of: {', '.join(names)}"
        )
    rows = tuple(row for row in all_rows if row.series == matches[0])
    return matches[0], infer_claimed_parents(rows)


def infer_claimed_parents(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with parents for the claims, whose files have none: the last kept one."""
    with_parents: list[Row] = []
    last_kept = ""
    for row in rows:
        if row.evidence == "claimed":
            row = replace(row, parent=last_kept)
            last_kept = row.blob if row.decision == "keep" else last_kept
        with_parents.append(row)
    return tuple(with_parents)


def format_replay(result: ReplayResult) -> list[str]:
    """The same for people."""
    origin = "claimed by others" if result.claimed else "measured here"
    lines = [
        f"series {result.series} ({origin}) under {result.policy}: "
        f"{result.experiments} experiments in {result.runs} runs; "
        f"{result.without_score} without a score",
        *(
            f"{name:<9} {counts['keep']} kept, {counts['discard']} discarded, "
            f"{counts['unresolved']} unresolved"
            for name, counts in (
                ("recorded", result.recorded),
                ("replayed", result.replayed),
            )
        ),
        f"{len(result.changed)} verdicts change; {result.missing} experiments lack a "
        f"run that {result.policy} would have asked for",
    ]
    for verdict in result.changed:
        lacks = " (lacks a run)" if verdict.missing else ""
        lines.append(
            f"{verdict.experiment:>4} {verdict.recorded} -> {verdict.replayed}{lacks}: "
            f"{to_one_line(verdict.why)}  [{verdict.title}]"
        )
    return lines
