"""The morning report: read the ledger, write a page.

`build` collects every number once; `headline` says it on a terminal; `html` makes one
self-contained page: no script from elsewhere, no request, everything out of the ledger
escaped. Only measured things are stated; what is not known is listed as such.

Not covered: intervals (the greedy policy measures no noise) and the holdout's gap.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from autoresearch import chart
from autoresearch.ledger import Ledger, Row
from autoresearch.notebook import one_line
from autoresearch.results import change, number, score

LARGEST_DIFF_LINES = 400
MOST_TABLE_ROWS = 10_000
MOST_WORDS = 200


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept change."""

    row: Row
    diff: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the views need."""

    lab: str
    metric: str
    lower_is_better: bool
    rows: tuple[Row, ...]  # of all series, in the order of decision
    series: str  # the present one; the headline is about it
    baseline: Row | None  # None: no verdict yet
    champion: Row | None
    kept: tuple[Kept, ...]
    total_diff: tuple[str, ...]
    facts: Mapping[str, object]
    notices: Sequence[str]

    @property
    def runs(self) -> int:
        return sum(row.runs for row in self.rows)

    @property
    def wall_seconds(self) -> float:
        """From the first proposal to the last verdict, less long pauses between."""
        total = 0.0
        last: float | None = None
        for row in self.rows:
            since = row.proposed_at if last is None else max(last, row.proposed_at)
            total += max(0.0, row.decided_at - since)
            last = row.decided_at
        return max(total, self.trained_seconds)

    @property
    def trained_seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def scored_seconds(self) -> float:
        return sum(row.evaluation_seconds for row in self.rows)

    def count(self, decision: str) -> int:
        return sum(row.decision == decision for row in self.rows)

    @property
    def gain(self) -> float | None:
        """How much better the champion is than its baseline; None before one."""
        if self.baseline is None or self.champion is None:
            return None
        before, after = self.baseline.value, self.champion.value
        assert before is not None
        assert after is not None
        return before - after if self.lower_is_better else after - before


def build(
    ledger: Ledger,
    *,
    metric: str,
    lower_is_better: bool,
    lab_name: str,
    facts: Mapping[str, object],
    notices: Sequence[str],
) -> Report:
    """Read all that is needed from the ledger, once."""
    rows = tuple(ledger.rows())
    series = ledger.last_series()
    mine = [r for r in rows if r.series == series and r.decision == "keep"]
    baseline, champion = (mine[0], mine[-1]) if mine else (None, None)
    changes = [row for row in mine if row.parent]
    total: tuple[str, ...] = ()
    if baseline and champion:
        total = diff_of(ledger, baseline.blob, champion.blob)
    return Report(
        lab_name,
        metric,
        lower_is_better,
        rows,
        series,
        baseline,
        champion,
        tuple(Kept(row, diff_of(ledger, row.parent, row.blob)) for row in changes),
        total,
        facts,
        notices,
    )


def diff_of(ledger: Ledger, before: str, after: str) -> tuple[str, ...]:
    """A unified diff of two train.py, bounded."""
    old, new = (ledger.source(blob).splitlines() for blob in (before, after))
    lines = list(difflib.unified_diff(old, new, "before", "after", lineterm=""))
    more = len(lines) - LARGEST_DIFF_LINES
    shown = lines[:LARGEST_DIFF_LINES]
    return (*shown, f"... {more} more lines") if more > 0 else tuple(shown)


# -- words -----------------------------------------------------------------------------


def headline(report: Report) -> list[str]:
    """The report on a terminal."""
    if report.baseline is None or report.champion is None:
        return ["nothing was measured yet"]
    lines = [
        f"{report.metric}  {score(report.baseline.value)} -> "
        f"{score(report.champion.value)}   {gain_words(report)}",
        counts_line(report),
        f"time     {clock(report.wall_seconds)}, trained {share(report)} of it",
    ]
    for kept in report.kept[-12:]:
        row = kept.row
        lines.append(f"{row.number:>4} {change(row.delta):>9}  {one_line(row.title)}")
    return [*lines, *(f"note     {one_line(words)}" for words in report.notices)]


def gain_words(report: Report) -> str:
    """The gain, and what it rests on."""
    if report.gain is None or report.champion is report.baseline:
        return "nothing kept yet"
    runs = report.champion.runs if report.champion else 0
    how = "one run each: the noise is not measured" if runs < 2 else f"{runs} runs"
    return f"gain {score(report.gain)}   ({how})"


def counts_line(report: Report) -> str:
    """Experiments and runs."""
    kinds = Counter(row.kind for row in report.rows if row.kind)
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    bases = sum(r.decision == "keep" and r.against is None for r in report.rows)
    return (
        f"{len(report.rows)} experiments in {report.runs} runs: "
        f"{report.count('keep') - bases} kept, {bases} to begin with, "
        f"{report.count('discard')} discarded, "
        f"{report.count('failed')} failed" + (f" ({why})" if why else "")
    )


def share(report: Report) -> str:
    """How much of the wall clock went into training."""
    if not report.wall_seconds:
        return "0 %"
    return f"{100 * report.trained_seconds / report.wall_seconds:.0f} %"


def clock(seconds: float) -> str:
    """8 h 05 min, 12 min 30 s."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def unknowns(report: Report) -> list[str]:
    """What this report does not know."""
    return [
        "How noisy a score is: the greedy policy runs each candidate once. Near the "
        "end of a night about half of such keeps are luck.",
        "How far the night overfitted its validation set: the holdout is sealed and "
        "was not scored.",
        f"What a train.py at cage level {report.facts.get('cage', 'none')!r} read "
        "besides its text: it ran as you, with a clock and limits but no walls.",
        "What it cost in money or energy: neither is measured.",
    ]


# -- the page --------------------------------------------------------------------------


def html(report: Report) -> str:
    """One self-contained page."""
    title = f"{report.lab}: {report.metric}"
    plot = chart.progress(
        report.rows,
        report.series,
        report.metric,
        lower_is_better=report.lower_is_better,
    )
    parts = [
        f"<header><h1>{text(report.lab)}</h1>{summary(report)}</header>",
        *(f"<p class=note>{text(words)}</p>" for words in report.notices),
        f"<section>{plot}</section>",
        kept_section(report),
        section("Experiments", table(report)),
        failures(report),
        section("Who and what brought it", sources(report)),
        section("What it ran on", facts_table(report)),
        section("Take the champion away", takeaway(report)),
        section("What this report does not know", bullets(unknowns(report))),
    ]
    style = resources.files("autoresearch").joinpath("report.css").read_text()
    body = "\n".join(part for part in parts if part)
    return PAGE.format(title=text(title), style=style, body=body)


def text(words: object) -> str:
    """Anything from the ledger, safe on a page and bounded."""
    return escape(one_line(str(words))[:MOST_WORDS])


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def summary(report: Report) -> str:
    """The headline numbers."""
    if report.baseline is None or report.champion is None:
        return "<p class=lead>Nothing was measured yet.</p>"
    first, best = score(report.baseline.value), score(report.champion.value)
    tiles = [
        (f"{first} → {best}", f"{report.metric}, baseline to champion"),
        (score(report.gain) or "0", "gain, one run each"),
        (str(len(report.kept)), f"kept of {len(report.rows)} experiments"),
        (clock(report.wall_seconds), f"trained {share(report)} of it"),
    ]
    cells = "".join(
        f"<div><b>{text(a)}</b><span>{text(b)}</span></div>" for a, b in tiles
    )
    return (
        f"<div class=tiles>{cells}</div><p class=lead>{text(counts_line(report))}</p>"
    )


def kept_section(report: Report) -> str:
    """Every kept change with its diff, and all of them together."""
    if not report.kept:
        return ""
    items = []
    for kept in report.kept:
        row = kept.row
        reason = f"<p>{text(row.reason)}</p>" if row.reason else ""
        items.append(
            f"<details id=e{row.number}><summary><span class=num>{row.number}</span>"
            f"<span class='num good'>{change(row.delta)}</span> {text(row.title)} "
            f"<small>{text(row.author)}</small></summary>{reason}{coloured(kept.diff)}"
            "</details>"
        )
    whole = (
        "<details><summary><span class=num>all</span> from the baseline to the champion"
        f"</summary>{coloured(report.total_diff)}</details>"
    )
    return section("What was kept", "".join(items) + whole)


def coloured(diff: Sequence[str]) -> str:
    """A diff with added and removed lines marked."""
    words = {"+": "add", "-": "del", "@": "at"}
    lines = [
        f"<span class={words[line[0]]}>{escape(shown(line))}</span>"
        if line[:1] in words and line[:3] not in ("+++", "---")
        else escape(shown(line))
        for line in diff
    ]
    return "<pre>" + "\n".join(lines) + "</pre>"


def shown(line: str) -> str:
    """A line of source without characters that a screen would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)[:400]


def table(report: Report) -> str:
    """Every experiment."""
    if not report.rows:
        return ""
    head = (
        "<th class=num>#<th>verdict<th class=num>"
        f"{text(report.metric)}<th class=num>Δ<th>what<th>who<th class=num>s"
        "<th class=num>GB<th class=num>M params<th class=num>M tokens"
    )
    rows = "".join(table_row(row) for row in report.rows[-MOST_TABLE_ROWS:])
    buttons = "".join(
        f"<label><input type=radio name=f id=f-{word}{first}>{word}</label>"
        for word, first in (("all", " checked"), ("kept", ""), ("failed", ""))
    )
    return (
        f"<div class=filter>{buttons}</div><div class=scroll><table><thead><tr>{head}"
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def table_row(row: Row) -> str:
    """One line of the table."""
    facts = dict(row.facts)
    word = row.kind or row.decision
    title = text(row.title)
    if row.decision == "keep" and row.parent:
        title = f"<a href='#e{row.number}'>{title}</a>"
    millions = [
        number(float(n) / 1e6, ".2f") if isinstance(n := facts.get(key), int) else ""
        for key in ("parameters", "tokens")
    ]
    cells = [
        f"<td class=num>{row.number}",
        f"<td>{text(word)}",
        f"<td class=num>{score(row.value)}",
        f"<td class=num>{change(row.delta)}",
        f"<td title='{text(row.why)}'>{title}",
        f"<td>{text(row.author)}",
        f"<td class=num>{number(row.seconds or None, '.0f')}",
        f"<td class=num>{number(row.memory_gb, '.1f')}",
        *(f"<td class=num>{words}" for words in millions),
    ]
    return f"<tr class={row.decision}>" + "".join(cells)


def failures(report: Report) -> str:
    """What failed, by kind."""
    failed = [row for row in report.rows if row.kind]
    if not failed:
        return ""
    parts = []
    for kind, count in Counter(row.kind for row in failed).most_common():
        lines = [
            f"{row.number}: {row.title} ({row.why})"
            for row in failed
            if row.kind == kind
        ]
        parts.append(
            f"<details><summary><span class=num>{count}</span> {text(kind)}</summary>"
            f"{bullets(lines[:50])}</details>"
        )
    return section("What failed", "".join(parts))


def sources(report: Report) -> str:
    """Gain per proposer and per version of program.md."""
    parts = []
    views = (("proposer", "author"), ("program.md", "program"))
    for words, name in views:
        keys = dict.fromkeys(
            str(getattr(row, name)) for row in report.rows if row.parent
        )
        lines = []
        for key in keys:
            rows = [r for r in report.rows if getattr(r, name) == key and r.parent]
            kept = [r for r in rows if r.decision == "keep"]
            total = change(sum(r.delta or 0.0 for r in kept)) if kept else ""
            label = key[:10] if name == "program" else key
            lines.append(
                f"<tr><td>{text(label)}<td class=num>{len(rows)}<td class=num>"
                f"{len(kept)}<td class=num>{total}"
            )
        if lines:
            head = (
                f"<th>{words}<th class=num>experiments<th class=num>kept<th class=num>Δ"
            )
            parts.append(f"<table class=small><tr>{head}{''.join(lines)}</table>")
    return "".join(parts)


def facts_table(report: Report) -> str:
    """What must be equal for scores to be compared."""
    facts = {**report.facts, "series": report.series}
    facts["training"] = clock(report.trained_seconds)
    facts["scoring"] = clock(report.scored_seconds)
    rows = "".join(f"<tr><td>{text(k)}<td>{text(v)}" for k, v in facts.items())
    return f"<table class=small>{rows}</table>"


def takeaway(report: Report) -> str:
    """Commands to copy."""
    first = report.baseline.number if report.baseline else 0
    lines = [
        f"git diff autoresearch/{first} HEAD -- train.py",
        "python train.py --seconds 36000 --seed 1 --out champion/",
        "python prepare.py score champion/",
    ]
    return "<pre>" + "\n".join(lines) + "</pre>"


PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head><body>
{body}
</body></html>
"""
