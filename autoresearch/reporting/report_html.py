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
    MAX_NEAR_MISSES_SHOWN,
    Report,
    format_certificate,
    format_change_count,
    format_clock,
    format_early_stopping,
    format_experiment_counts,
    format_holdout,
    format_imported,
    format_interval,
    format_noise,
    format_reverted,
    format_shrinkage,
    format_training_share,
    list_champion_commands,
    list_unknowns,
)
from autoresearch.text import format_delta, format_number, format_score, to_one_line

MAX_TABLE_ROWS = 10_000
MAX_TEXT_CHARACTERS = 200


def render_html(report: Report) -> str:
    """One self-contained page."""
    title = f"{report.lab_name}: {report.metric}"
    plot = chart.draw_progress_chart(
        report.rows,
        report.series,
        report.metric,
        lower_is_better=report.lower_is_better,
        known=report.summary.noise,
        back=report.reverted_numbers,
    )
    parts = [
        f"<header><h1>{escape_text(report.lab_name)}</h1>{render_summary(report)}</header>",
        *(f"<p class=note>{escape_text(words)}</p>" for words in report.notices),
        f"<section>{plot}</section>",
        render_section(
            "How sure that is", render_bullets(collect_evidence_lines(report))
        ),
        render_kept_changes(report),
        render_section("Near misses", render_near_misses(report)),
        render_section("Experiments", render_experiments(report)),
        render_failures(report),
        render_section("Who and what brought it", render_sources(report)),
        render_section("Who was asked", render_bullets(report.proposer_lines))
        if report.proposer_lines
        else "",
        render_section("What it ran on", render_facts(report)),
        render_section("Take the champion away", render_commands(report)),
        render_section(
            "What this report does not know", render_bullets(list_unknowns(report))
        ),
    ]
    style = resources.files("autoresearch.reporting").joinpath("report.css").read_text()
    body = "\n".join(part for part in parts if part)
    return PAGE_TEMPLATE.format(title=escape_text(title), style=style, body=body)


def escape_text(words: object) -> str:
    """Anything from the ledger, safe on a page and bounded."""
    return escape(to_one_line(str(words))[:MAX_TEXT_CHARACTERS])


def render_section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def render_bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape_text(line)}</li>" for line in lines) + "</ul>"


def render_summary(report: Report) -> str:
    """The headline numbers."""
    if report.baseline is None or report.champion is None:
        return "<p class=lead>Nothing was measured yet.</p>"
    found = report.summary
    first, best = format_score(found.baseline_mean), format_score(found.champion_mean)
    certificate = found.certificate
    tiles = [
        *(
            [
                (
                    format_delta(certificate.gain),
                    f"replicated on {certificate.pairs} seeds, "
                    f"{format_interval(certificate.low, certificate.high)}",
                )
            ]
            if certificate
            else []
        ),
        (f"{first} → {best}", f"{report.metric}, baseline to champion"),
        build_gain_tile(report),
        (
            str(len(report.kept_changes)),
            f"kept of {len(report.rows)} experiments in {report.run_count} runs",
        ),
        (
            format_clock(report.wall_seconds),
            f"trained {format_training_share(report)} of it",
        ),
    ]
    cells = "".join(
        f"<div><b>{escape_text(a)}</b><span>{escape_text(b)}</span></div>"
        for a, b in tiles
    )
    return f"<div class=tiles>{cells}</div><p class=lead>{escape_text(format_experiment_counts(report))}</p>"


def build_gain_tile(report: Report) -> tuple[str, str]:
    """The gain and what it rests on, short."""
    claim = report.summary.gain_estimate
    if claim is not None:
        return format_score(
            claim.gain
        ), f"gain, {format_interval(claim.low, claim.high)}"
    why = report.summary.no_estimate_reason
    return format_score(report.raw_gain) or "0", f"plain difference; {why}"


def collect_evidence_lines(report: Report) -> list[str]:
    """The lines of the terminal that say how sure all of it is."""
    parts = (
        format_certificate, format_shrinkage, format_noise, format_holdout, format_early_stopping,
        format_reverted, format_imported,
    )  # fmt: skip
    return [line for part in parts for line in part(report)]


def render_near_misses(report: Report) -> str:
    """What may be better, but not beyond doubt."""
    near = report.summary.near_misses
    if not near:
        return ""
    rows = "".join(
        render_table_row(report, row) for row in near[:MAX_NEAR_MISSES_SHOWN]
    )
    more = len(near) - MAX_NEAR_MISSES_SHOWN
    rest = f"<p>{more} more are in the table below.</p>" if more > 0 else ""
    return f"<div class=scroll><table>{render_table_head(report)}{rows}</table></div>{rest}"


def render_kept_changes(report: Report) -> str:
    """Every kept change with its diff, and all of them together."""
    if not report.kept_changes:
        return ""
    items = []
    for kept in report.kept_changes:
        row = kept.row
        reason = f"<p>{escape_text(row.reason)}</p>" if row.reason else ""
        items.append(
            f"<details id=e{row.number}><summary><span class=num>{row.number}</span>"
            f"<span class='num good'>{format_delta(row.delta)}</span> "
            f"{escape_text(row.title + format_change_count(kept))} "
            f"<small>{escape_text(row.author)}</small></summary>{reason}"
            f"{render_diff(kept.diff)}</details>"
        )
    whole = (
        "<details><summary><span class=num>all</span> from the baseline to the champion"
        f"</summary>{render_diff(report.total_diff)}</details>"
    )
    return render_section("What was kept", "".join(items) + whole)


def render_diff(diff: Sequence[str]) -> str:
    """A diff with added and removed lines marked."""
    words = {"+": "add", "-": "del", "@": "at"}
    lines = [
        f"<span class={words[line[0]]}>{escape(clean_source_line(line))}</span>"
        if line[:1] in words and line[:3] not in ("+++", "---")
        else escape(clean_source_line(line))
        for line in diff
    ]
    return "<pre>" + "\n".join(lines) + "</pre>"


def clean_source_line(line: str) -> str:
    """A line of source without characters that a screen would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)[:400]


def render_experiments(report: Report) -> str:
    """Every experiment."""
    if not report.rows:
        return ""
    rows = "".join(
        render_table_row(report, row) for row in report.rows[-MAX_TABLE_ROWS:]
    )
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
        f"{render_table_head(report)}<tbody>{rows}</tbody></table></div>"
    )


def render_table_head(report: Report) -> str:
    """The titles of its columns."""
    return (
        "<thead><tr><th class=num>#<th>verdict<th class=num>runs<th class=num>"
        f"{escape_text(report.metric)}<th class=num>Δ<th>what<th>who<th class=num>s"
        "<th class=num>GB<th class=num>M params<th class=num>M tokens</tr></thead>"
    )


def render_table_row(report: Report, row: Row) -> str:
    """One line of the table."""
    facts = dict(row.facts)
    said = report.describe_verdict(row)
    title = escape_text(format_description(row))
    if any(kept.row.number == row.number for kept in report.kept_changes):
        title = f"<a href='#e{row.number}'>{title}</a>"
    millions = [
        format_number(float(n) / 1e6, ".2f")
        if isinstance(n := facts.get(key), int)
        else ""
        for key in ("parameters", "tokens")
    ]
    cells = [
        f"<td class=num>{row.number}",
        f"<td>{escape_text(said if row.decision != 'failed' else row.kind)}",
        f"<td class=num>{format_number(row.runs or None, 'd')}",
        f"<td class=num>{format_score(row.value)}",
        f"<td class=num>{format_delta(row.delta)}",
        f"<td title='{escape_text(row.why)}'>{title}",
        f"<td>{escape_text(row.author)}",
        f"<td class=num>{format_number(row.seconds or None, '.0f')}",
        f"<td class=num>{format_number(row.memory_gb, '.1f')}",
        *(f"<td class=num>{words}" for words in millions),
    ]
    kind = "near" if said == "unresolved" else row.status
    return f"<tr class={kind}>" + "".join(cells)


def render_failures(report: Report) -> str:
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
            f"<details><summary><span class=num>{count}</span> {escape_text(kind)}</summary>"
            f"{render_bullets(lines[:50])}</details>"
        )
    return render_section("What failed", "".join(parts))


def render_sources(report: Report) -> str:
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
                f"<tr><td>{escape_text(label)}<td class=num>{len(rows)}<td class=num>"
                f"{len(kept)}<td class=num>{total}"
            )
        if lines:
            head = (
                f"<th>{words}<th class=num>experiments<th class=num>kept<th class=num>Δ"
            )
            parts.append(f"<table class=small><tr>{head}{''.join(lines)}</table>")
    return "".join(parts)


def render_facts(report: Report) -> str:
    """What must be equal for scores to be compared."""
    facts = {**report.series_facts, "series": report.series}
    facts["training"] = format_clock(report.trained_seconds)
    facts["scoring"] = format_clock(report.scored_seconds)
    rows = "".join(
        f"<tr><td>{escape_text(k)}<td>{escape_text(v)}" for k, v in facts.items()
    )
    return f"<table class=small>{rows}</table>"


def render_commands(report: Report) -> str:
    """Commands to copy."""
    lines = list_champion_commands(report)
    if not lines:
        return ""
    if lines[-1].endswith("champion/"):
        lines.append("python prepare.py score champion/")
    return f"<pre>{escape_text(chr(10).join(lines))}</pre>"


PAGE_TEMPLATE = """<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head><body>
{body}
</body></html>
"""
