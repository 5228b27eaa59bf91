"""The report as one self-contained HTML page.

Promises: no script, no request to anywhere, and everything from the ledger escaped and
cut to a bounded length. The sentences are `report_text`'s, the plot is `chart`'s.

Not covered: printing on paper.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from autoresearch.experiment import Row
from autoresearch.records.results_tsv import format_description
from autoresearch.reporting import chart
from autoresearch.reporting.format import pluralize
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
MAX_FAILURES_SHOWN = 50  # of one kind


def render_html(report: Report) -> str:
    """The page."""
    title = f"{report.lab_name}: {report.metric}"
    plot = chart.draw_progress_chart(
        report.rows,
        report.series,
        report.metric,
        lower_is_better=report.lower_is_better,
        noise=report.summary.noise,
        reverted=report.reverted_numbers,
    )
    parts = [
        f"<header><h1>{escape_text(report.lab_name)}</h1>{render_summary(report)}</header>",
        *(f"<p class=note>{escape_text(notice)}</p>" for notice in report.notices),
        f"<section>{plot}</section>",
        render_section("Evidence", render_bullets(collect_evidence_lines(report))),
        render_kept_changes(report),
        render_section("Near misses", render_near_misses(report)),
        render_section("Experiments", render_experiments(report)),
        render_failures(report),
        render_section("Gains by proposer and program.md", render_sources(report)),
        render_section("Calls to models and agents", render_calls(report)),
        render_section("Conditions", render_facts(report)),
        render_section("Use the champion", render_commands(report)),
        render_section("Not known", render_bullets(list_unknowns(report))),
    ]
    style = resources.files("autoresearch.reporting").joinpath("report.css").read_text()
    body = "\n".join(part for part in parts if part)
    return PAGE_TEMPLATE.format(title=escape_text(title), style=style, body=body)


def escape_text(value: object) -> str:
    """Anything from the ledger as HTML text: one line, escaped and bounded."""
    return escape(to_one_line(str(value))[:MAX_TEXT_CHARACTERS])


def render_section(title: str, body: str) -> str:
    """A section with its heading; "" for an empty body."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def render_bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape_text(line)}</li>" for line in lines) + "</ul>"


def render_summary(report: Report) -> str:
    """The headline numbers as tiles."""
    if report.baseline is None or report.champion is None:
        return "<p class=lead>Nothing has been measured yet.</p>"
    summary = report.summary
    before = format_score(summary.baseline_mean)
    after = format_score(summary.champion_mean)
    tiles = [
        *build_certificate_tiles(report),
        (f"{before} → {after}", f"{report.metric}, baseline to champion"),
        build_gain_tile(report),
        (
            str(len(report.kept_changes)),
            f"kept of {len(report.rows)} experiments in {report.run_count} runs",
        ),
        (
            format_clock(report.wall_seconds),
            f"{format_training_share(report)} of it training",
        ),
    ]
    cells = "".join(
        f"<div><b>{escape_text(number)}</b><span>{escape_text(caption)}</span></div>"
        for number, caption in tiles
    )
    counts = escape_text(format_experiment_counts(report))
    return f"<div class=tiles>{cells}</div><p class=lead>{counts}</p>"


def build_certificate_tiles(report: Report) -> list[tuple[str, str]]:
    """(number, caption) of the replicated gain; nothing before `replicate` ran."""
    certificate = report.summary.certificate
    if certificate is None:
        return []
    interval = format_interval(certificate.low, certificate.high)
    seeds = pluralize(certificate.pairs, "seed")
    return [(format_delta(certificate.gain), f"replicated on {seeds}, {interval}")]


def build_gain_tile(report: Report) -> tuple[str, str]:
    """(number, caption) of the gain."""
    estimate = report.summary.gain_estimate
    if estimate is not None:
        interval = format_interval(estimate.low, estimate.high)
        return format_score(estimate.gain), f"gain, {interval}"
    why = report.summary.no_estimate_reason
    return format_score(report.raw_gain) or "0", f"plain difference; {why}"


def collect_evidence_lines(report: Report) -> list[str]:
    """Every line of the terminal's headline about uncertainty."""
    sections = (
        format_certificate,
        format_shrinkage,
        format_noise,
        format_holdout,
        format_early_stopping,
        format_reverted,
        format_imported,
    )
    return [line for section in sections for line in section(report)]


def render_near_misses(report: Report) -> str:
    """The unresolved experiments that scored better than the champion, as a table."""
    near = report.summary.near_misses
    if not near:
        return ""
    head = render_table_head(report)
    rows = "".join(
        render_table_row(report, row) for row in near[:MAX_NEAR_MISSES_SHOWN]
    )
    more = len(near) - MAX_NEAR_MISSES_SHOWN
    rest = f"<p>{more} more are in the table below.</p>" if more > 0 else ""
    return f"<div class=scroll><table>{head}{rows}</table></div>{rest}"


def render_kept_changes(report: Report) -> str:
    """Every kept change with its diff, then all of them as one diff."""
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
    return render_section("Kept changes", "".join(items) + whole)


def render_diff(diff: Sequence[str]) -> str:
    """A diff with added and removed lines marked."""
    classes = {"+": "add", "-": "del", "@": "at"}
    lines = [
        f"<span class={classes[line[0]]}>{escape(clean_source_line(line))}</span>"
        if line[:1] in classes and line[:3] not in ("+++", "---")
        else escape(clean_source_line(line))
        for line in diff
    ]
    return "<pre>" + "\n".join(lines) + "</pre>"


def clean_source_line(line: str) -> str:
    """A line of source without control characters, cut to 400 characters."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)[:400]


def render_experiments(report: Report) -> str:
    """Every experiment in one table, with buttons that filter it."""
    if not report.rows:
        return ""
    rows = "".join(
        render_table_row(report, row) for row in report.rows[-MAX_TABLE_ROWS:]
    )
    buttons = "".join(
        f"<label><input type=radio name=f id=f-{name}{checked}>{name}</label>"
        for name, checked in (
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
    """The column titles of an experiment table."""
    return (
        "<thead><tr><th class=num>#<th>verdict<th class=num>runs"
        f"<th class=num>{escape_text(report.metric)}<th class=num>Δ<th>title"
        "<th>proposer<th class=num>s<th class=num>GB<th class=num>M params"
        "<th class=num>M tokens</tr></thead>"
    )


def render_table_row(report: Report, row: Row) -> str:
    """One experiment as a table row."""
    facts = dict(row.facts)
    verdict = report.describe_verdict(row)
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
        f"<td>{escape_text(verdict if row.decision != 'failed' else row.kind)}",
        f"<td class=num>{format_number(row.runs or None, 'd')}",
        f"<td class=num>{format_score(row.value)}",
        f"<td class=num>{format_delta(row.delta)}",
        f"<td title='{escape_text(row.why)}'>{title}",
        f"<td>{escape_text(row.author)}",
        f"<td class=num>{format_number(row.seconds or None, '.0f')}",
        f"<td class=num>{format_number(row.memory_gb, '.1f')}",
        *(f"<td class=num>{million}" for million in millions),
    ]
    kind = "near" if verdict == "unresolved" else row.status
    return f"<tr class={kind}>" + "".join(cells)


def render_failures(report: Report) -> str:
    """Failed experiments, grouped by kind."""
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
            f"<details><summary><span class=num>{count}</span> {escape_text(kind)}"
            f"</summary>{render_bullets(lines[:MAX_FAILURES_SHOWN])}</details>"
        )
    return render_section("Failures", "".join(parts))


def render_sources(report: Report) -> str:
    """Kept gains per proposer and per version of program.md."""
    rows = [row for row in report.rows if row.parent]  # without baselines
    by_author, by_program = defaultdict(list), defaultdict(list)
    for row in rows:
        by_author[row.author].append(row)
        by_program[row.program[:10]].append(row)
    return render_source_table("proposer", by_author) + render_source_table(
        "program.md", by_program
    )


def render_source_table(title: str, groups: Mapping[str, Sequence[Row]]) -> str:
    """Experiments, kept ones and their summed gain, a group a line."""
    if not groups:
        return ""
    lines = []
    for name, rows in groups.items():
        kept = [row for row in rows if row.decision == "keep"]
        total = format_delta(sum(row.delta or 0.0 for row in kept)) if kept else ""
        lines.append(
            f"<tr><td>{escape_text(name)}<td class=num>{len(rows)}<td class=num>"
            f"{len(kept)}<td class=num>{total}"
        )
    head = f"<th>{title}<th class=num>experiments<th class=num>kept<th class=num>Δ"
    return f"<table class=small><tr>{head}{''.join(lines)}</table>"


def render_calls(report: Report) -> str:
    """Calls to models and agents, their cost and outages."""
    return render_bullets(report.proposer_lines) if report.proposer_lines else ""


def render_facts(report: Report) -> str:
    """What must be equal for scores to be comparable, and where the time went."""
    facts = {**report.series_facts, "series": report.series}
    facts["training"] = format_clock(report.trained_seconds)
    facts["scoring"] = format_clock(report.scored_seconds)
    rows = "".join(
        f"<tr><td>{escape_text(name)}<td>{escape_text(value)}"
        for name, value in facts.items()
    )
    return f"<table class=small>{rows}</table>"


def render_commands(report: Report) -> str:
    """Commands to copy, which train and score the champion."""
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
