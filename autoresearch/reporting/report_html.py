"""The morning report as one self-contained HTML page.

No script, no request, everything out of the ledger escaped and cut to size. What it
says is `morning`'s; the plot is `chart`'s. Not covered: printing on paper.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources

from autoresearch.experiment import Row
from autoresearch.records.results_tsv import format_description
from autoresearch.reporting import chart
from autoresearch.reporting.report_text import (
    MOST_NEAR,
    Report,
    back_lines,
    certificate_lines,
    claimed_lines,
    clock,
    counts_line,
    early_lines,
    holdout_lines,
    luck_lines,
    noise_lines,
    share,
    takeaway,
    unknowns,
    way_words,
    within,
)
from autoresearch.text import format_delta, format_number, to_one_line, format_score

MOST_TABLE_ROWS = 10_000
MOST_WORDS = 200


def html(report: Report) -> str:
    """One self-contained page."""
    title = f"{report.lab}: {report.metric}"
    plot = chart.progress(
        report.rows,
        report.series,
        report.metric,
        lower_is_better=report.lower_is_better,
        known=report.found.noise,
        back=report.back,
    )
    parts = [
        f"<header><h1>{text(report.lab)}</h1>{summary(report)}</header>",
        *(f"<p class=note>{text(words)}</p>" for words in report.notices),
        f"<section>{plot}</section>",
        section("How sure that is", bullets(evidence(report))),
        kept_section(report),
        section("Near misses", near_table(report)),
        section("Experiments", table(report)),
        failures(report),
        section("Who and what brought it", sources(report)),
        section("Who was asked", bullets(report.asked)) if report.asked else "",
        section("What it ran on", facts_table(report)),
        section("Take the champion away", commands(report)),
        section("What this report does not know", bullets(unknowns(report))),
    ]
    style = resources.files("autoresearch.reporting").joinpath("report.css").read_text()
    body = "\n".join(part for part in parts if part)
    return PAGE.format(title=text(title), style=style, body=body)


def text(words: object) -> str:
    """Anything from the ledger, safe on a page and bounded."""
    return escape(to_one_line(str(words))[:MOST_WORDS])


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def summary(report: Report) -> str:
    """The headline numbers."""
    if report.baseline is None or report.champion is None:
        return "<p class=lead>Nothing was measured yet.</p>"
    found = report.found
    first, best = format_score(found.before), format_score(found.after)
    certificate = found.certificate
    tiles = [
        *(
            [
                (
                    format_delta(certificate.gain),
                    f"replicated on {certificate.pairs} seeds, "
                    f"{within(certificate.low, certificate.high)}",
                )
            ]
            if certificate
            else []
        ),
        (f"{first} → {best}", f"{report.metric}, baseline to champion"),
        gain_tile(report),
        (
            str(len(report.kept)),
            f"kept of {len(report.rows)} experiments in {report.runs} runs",
        ),
        (clock(report.wall_seconds), f"trained {share(report)} of it"),
    ]
    cells = "".join(
        f"<div><b>{text(a)}</b><span>{text(b)}</span></div>" for a, b in tiles
    )
    return (
        f"<div class=tiles>{cells}</div><p class=lead>{text(counts_line(report))}</p>"
    )


def gain_tile(report: Report) -> tuple[str, str]:
    """The gain and what it rests on, short."""
    claim = report.found.claim
    if claim is not None:
        return format_score(claim.gain), f"gain, {within(claim.low, claim.high)}"
    why = report.found.why_no_claim
    return format_score(report.gain) or "0", f"plain difference; {why}"


def evidence(report: Report) -> list[str]:
    """The lines of the terminal that say how sure all of it is."""
    parts = (
        certificate_lines, luck_lines, noise_lines, holdout_lines, early_lines,
        back_lines, claimed_lines,
    )  # fmt: skip
    return [line for part in parts for line in part(report)]


def near_table(report: Report) -> str:
    """What may be better, but not beyond doubt."""
    near = report.found.near
    if not near:
        return ""
    rows = "".join(table_row(report, row) for row in near[:MOST_NEAR])
    more = len(near) - MOST_NEAR
    rest = f"<p>{more} more are in the table below.</p>" if more > 0 else ""
    return f"<div class=scroll><table>{table_head(report)}{rows}</table></div>{rest}"


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
            f"<span class='num good'>{format_delta(row.delta)}</span> "
            f"{text(row.title + way_words(kept))} "
            f"<small>{text(row.author)}</small></summary>{reason}"
            f"{coloured(kept.diff)}</details>"
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
    rows = "".join(table_row(report, row) for row in report.rows[-MOST_TABLE_ROWS:])
    buttons = "".join(
        f"<label><input type=radio name=f id=f-{word}{first}>{word}</label>"
        for word, first in (
            ("all", " checked"),
            ("kept", ""),
            ("near", ""),
            ("failed", ""),
        )
    )
    return (
        f"<div class=filter>{buttons}</div><div class=scroll><table>"
        f"{table_head(report)}<tbody>{rows}</tbody></table></div>"
    )


def table_head(report: Report) -> str:
    """The titles of its columns."""
    return (
        "<thead><tr><th class=num>#<th>verdict<th class=num>runs<th class=num>"
        f"{text(report.metric)}<th class=num>Δ<th>what<th>who<th class=num>s"
        "<th class=num>GB<th class=num>M params<th class=num>M tokens</tr></thead>"
    )


def table_row(report: Report, row: Row) -> str:
    """One line of the table."""
    facts = dict(row.facts)
    said = report.said(row)
    title = text(format_description(row))
    if any(kept.row.number == row.number for kept in report.kept):
        title = f"<a href='#e{row.number}'>{title}</a>"
    millions = [
        format_number(float(n) / 1e6, ".2f") if isinstance(n := facts.get(key), int) else ""
        for key in ("parameters", "tokens")
    ]
    cells = [
        f"<td class=num>{row.number}",
        f"<td>{text(said if row.decision != 'failed' else row.kind)}",
        f"<td class=num>{format_number(row.runs or None, 'd')}",
        f"<td class=num>{format_score(row.value)}",
        f"<td class=num>{format_delta(row.delta)}",
        f"<td title='{text(row.why)}'>{title}",
        f"<td>{text(row.author)}",
        f"<td class=num>{format_number(row.seconds or None, '.0f')}",
        f"<td class=num>{format_number(row.memory_gb, '.1f')}",
        *(f"<td class=num>{words}" for words in millions),
    ]
    kind = "near" if said == "unresolved" else row.status
    return f"<tr class={kind}>" + "".join(cells)


def failures(report: Report) -> str:
    """What failed, by kind."""
    failed = [row for row in report.rows if row.decision == "failed"]
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
            total = format_delta(sum(r.delta or 0.0 for r in kept)) if kept else ""
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


def commands(report: Report) -> str:
    """Commands to copy."""
    lines = takeaway(report)
    if not lines:
        return ""
    if lines[-1].endswith("champion/"):
        lines.append("python prepare.py score champion/")
    return f"<pre>{text(chr(10).join(lines))}</pre>"


PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head><body>
{body}
</body></html>
"""
