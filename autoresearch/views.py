"""What `status`, `log` and `show` say: from the ledger to plain values and lines.

The values are the `--json` contract; the lines are for people. Reads only.
"""

import ast
import difflib
import getpass
import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch import constants, program, results, rules
from autoresearch.errors import LabError, NotYet
from autoresearch.experiment import Champion, Proposal
from autoresearch.lab import LARGEST_FILE_BYTES, Lab, git_blob
from autoresearch.ledger import Ledger, Row
from autoresearch.notebook import one_line
from autoresearch.policy import near_miss
from autoresearch.program import Program
from autoresearch.results import number

STALE_SECONDS = 20.0  # a note of what runs, with nobody writing it
SHARE_THAT_TELLS = 0.05  # of a run, from which on its pace says when it ends
SHORT_SECONDS = 60.0  # below this, seconds are shown with a decimal
LARGEST_LOG_CHARACTERS = 20_000
MOST_WHY = 120  # letters of why something failed, where it has a line only


def as_json(row: Row, back: Collection[int] = ()) -> dict[str, Any]:
    """One experiment, as `--json` shows it. `back`: who was taken back."""
    return {
        "experiment": row.number,
        "decision": row.decision,
        "verdict": results.word(row, taken_back=row.number in back),
        "why": one_line(row.why),
        "kind": row.kind,
        "value": row.value,
        "delta": row.delta,
        "against": row.against,
        "runs": row.runs,
        "values": list(row.values),
        "title": one_line(row.title),
        "on_top_of": list(row.way),
        "reason": row.reason,
        "proposed_by": one_line(row.author),
        "commit": row.commit,
        "ran": row.blob,
        "program": row.program,
        "series": row.series,
        "seconds": row.seconds,
        "memory_gb": row.memory_gb,
        "facts": dict(row.facts),
        "health": dict(row.health),
        "evidence": row.evidence,
        "decided_at": row.decided_at,
    }


def verdict_line(row: Row, back: Collection[int] = ()) -> str:
    """One experiment on one line of the terminal. `back`: who was taken back."""
    word = results.word(row, taken_back=row.number in back)
    score = results.score(row.value) or (row.kind or "")
    if row.runs > 1:
        score += f" ({row.runs} runs)"
    delta = results.change(row.delta)
    title = results.described(row)
    if row.evidence == "claimed":
        title = f"{row.decision}: {title}"
    elif row.decision == "failed":
        title = f"{title} ({one_line(row.why.partition(': ')[2])[:MOST_WHY]})"
    who = one_line(row.author)
    return f"{row.number:>4} {word:<10} {score:<16} {delta:>8}  {who:<10} {title}"


def taken_back(ledger: Ledger) -> frozenset[int]:
    """Champions that turned out worse, by experiment."""
    return frozenset(back.experiment for back in ledger.taken_back())


def logged(ledger: Ledger) -> list[Row]:
    """Every experiment for `log`: what others claim first, then what was measured."""
    return [*ledger.claimed(), *ledger.rows()]


def running(lab: Lab) -> dict[str, Any] | None:
    """What runs at this moment; None when no night is on."""
    if lab.holder() is None:
        return None
    try:
        found = json.loads(lab.now.read_text())
    except (FileNotFoundError, ValueError):
        return {"pid": lab.holder(), "runs": [], "notices": [], "until": None}
    return dict(found)


def status(lab: Lab, ledger: Ledger) -> dict[str, Any]:
    """How the lab stands, as `status --json` shows it."""
    rows = {"baseline": first_of_series(ledger), "champion": champion_row(ledger)}
    back = taken_back(ledger)
    return {
        **ledger.counts(),
        **{name: as_json(row) if row else None for name, row in rows.items()},
        "waiting": len(ledger.open()),
        "running": running(lab),
        "paused": lab.pause.exists(),
        "series": ledger.last_series(),
        "last": [as_json(row, back) for row in ledger.last(5)],
    }


def champion_row(ledger: Ledger) -> Row | None:
    """The champion's row; None before a baseline."""
    champion = ledger.champion
    return ledger.row(champion.number) if champion else None


def first_of_series(ledger: Ledger) -> Row | None:
    """What the present series started from; None before it did."""
    number = ledger.first_keep(ledger.last_series())
    return ledger.row(number) if number is not None else None


def status_lines(metric: str, found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    champion, baseline = found["champion"], found["baseline"]
    lines = [results.counts_words(found)]
    if found["claimed"]:
        lines.append(
            f"{found['claimed']} more are claimed by others, measured by nobody"
        )
    if champion and baseline:
        first, best = (results.score(row["value"]) for row in (baseline, champion))
        which = f"experiment {champion['experiment']}: {champion['title']}"
        lines.append(f"{metric}  {first} -> {best}   champion is {which}")
    for row in found["last"]:
        score = results.score(row["value"]) or row["kind"]
        lines.append(
            f"{row['experiment']:>4} {row['verdict']:<10} {score:<14} "
            f"{results.change(row['delta']):>8}  {row['title']}"
            + results.on_top(row["on_top_of"])
        )
    if found["waiting"]:
        lines.append(f"{found['waiting']} waiting")
    if found["paused"]:
        lines.append("paused: nothing new begins before autoresearch resume")
    return lines + running_lines(found["running"])


def running_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What runs now, for people."""
    if found is None:
        return ["not running"]
    lines = [run_line(run) for run in found["runs"]]
    lines += [f"note: {one_line(notice)}" for notice in found["notices"]]
    return lines or ["between two experiments"]


def left_seconds(seconds: float, share: float) -> float | None:
    """How long a run will still train; None: it is done, or has hardly begun.

    The first step compiles and warms up: a run of 4 s seemed to need 24 minutes.
    """
    return seconds * (1 - share) / share if SHARE_THAT_TELLS <= share < 1 else None


def run_line(run: Mapping[str, Any]) -> str:
    """One run in hand."""
    share = float(run["share"])
    done = round(20 * share)
    bar = "#" * done + "." * (20 - done)
    parts = [f"{run['experiment']:>4} {run['phase']:<8} [{bar}] {share:4.0%}"]
    if run["loss"] is not None:
        parts.append(f"loss {run['loss']:.3f}")
    if run["tokens"] and run["seconds"]:
        parts.append(f"{rate(run['tokens'] / run['seconds'])} tok/s")
    if (left := left_seconds(run["seconds"], share)) is not None:
        parts.append(f"{spell(left)} left")
    parts.append(one_line(str(run["title"])))
    return "  ".join(parts)


def rate(per_second: float) -> str:
    """308k, 1.2M."""
    if per_second >= 1e6:
        return f"{per_second / 1e6:.2f}M"
    return f"{per_second / 1e3:.0f}k" if per_second >= 1e3 else f"{per_second:.0f}"


def duration(seconds: float) -> str:
    """0:42, 12:05, 7:31:00."""
    whole = int(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def spell(seconds: float) -> str:
    """4.2 s, 12:05, 7:31:00."""
    return f"{seconds:.1f} s" if seconds < SHORT_SECONDS else duration(seconds)


def pick(ledger: Ledger, which: str) -> Row:
    """The experiment that `show` was asked for; NotYet, or LabError for no name."""
    found: Row | None
    if which == "champion":
        found = champion_row(ledger)
    elif which == "baseline":
        found = first_of_series(ledger)
    elif which == "last":
        found = next(iter(ledger.last(1)), None)
    elif which.isdigit():
        found = ledger.row(int(which))
    else:
        raise LabError(
            f"{which!r} is no experiment. Next: autoresearch show N, or champion, "
            "baseline or last"
        )
    if found is None:
        raise NotYet(f"there is no verdict on {which} yet. Next: autoresearch log")
    return found


def not_yet(lab: Lab, ledger: Ledger, number: int) -> NotYet:
    """Why there is no verdict on an experiment, and what to type."""
    if all(proposal.number != number for proposal in ledger.open()):
        return NotYet(f"there is no experiment {number}. Next: autoresearch log")
    if lab.holder() is None:
        why, then = "; nothing runs now, so it waits", "autoresearch run"
    elif lab.pause.exists():
        why, then = "; the night is paused, so it waits", "autoresearch resume"
    else:
        why, then = " yet", f"autoresearch show {number} --wait 100"
    return NotYet(f"no verdict on experiment {number}{why}. Next: {then}")


def diff(ledger: Ledger, row: Row) -> str:
    """What an experiment changed in train.py."""
    return diff_of(ledger, row.parent, row.blob) if row.parent else ""


def diff_of(ledger: Ledger, parent: str, blob: str) -> str:
    """What lies between two train.py."""
    before = ledger.source(parent).splitlines(keepends=True)
    after = ledger.source(blob).splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, "a/train.py", "b/train.py"))


def read_log(lab: Lab, row: Row) -> str:
    """What its last run printed, stripped of anything a terminal would obey."""
    names = sorted(lab.logs.glob(f"{row.number}-*.log"))
    if not names:
        return ""
    text = names[-1].read_text(errors="replace")[-LARGEST_LOG_CHARACTERS:]
    return "\n".join(one_line(line) for line in text.splitlines())


def show_lines(lab: Lab, ledger: Ledger, row: Row, metric: str) -> Iterable[str]:
    """One experiment with diff, scores, verdict and log."""
    back = {one.experiment: one for one in ledger.taken_back()}
    yield verdict_line(row, back)
    if row.evidence == "claimed":
        yield "claimed   by somebody else: not measured here, its train.py is not here"
    if taken := back.get(row.number):
        yield f"back      {taken.instead} reigns again: {one_line(taken.why)}"
    yield f"why       {one_line(row.why)}"
    if row.reason:
        yield f"idea      {one_line(row.reason)}"
    values = " ".join(map(results.exact, row.values))
    nothing = "none: it was ended early" if row.kind == "ended early" else ""
    yield f"{metric:<9} {values or nothing or 'none: it failed'}"
    against = "nothing, it is a baseline" if row.against is None else str(row.against)
    yield f"against   {against}"
    if row.way:
        yield f"stands on {', '.join(map(str, row.way))}: its score is of all of them"
    if row.runs:
        yield (
            f"runs      {row.runs}, {row.seconds:.1f} s trained, "
            f"{number(row.memory_gb, '.2f')} GB"
        )
    if row.facts:
        yield "resolved  " + ", ".join(f"{key} {value}" for key, value in row.facts)
    if row.health:
        words = (f"{key} {value}" for key, value in row.health if value != "")
        yield "health    " + ", ".join(words).replace("gpu_", "")
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.decided_at))
    yield f"decided   {at}, commit {(row.commit or 'none')[:10]}, series {row.series}"
    if changed := diff(ledger, row):
        yield ""
        yield from (one_end(line) for line in changed.splitlines())
    if row.way and row.against is not None and (rival := ledger.row(row.against)):
        yield ""
        yield f"--- all {len(row.way) + 1} changes since experiment {row.against} ---"
        whole = diff_of(ledger, rival.blob, row.blob)
        yield from (one_end(line) for line in whole.splitlines())
    if log := read_log(lab, row):
        yield ""
        yield "--- what the run printed (not trusted) ---"
        yield log


def one_end(line: str) -> str:
    """A line of source, without terminal escapes but with its indentation."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def nearest(rows: Iterable[Row], *, lower_is_better: bool) -> list[Row]:
    """Discarded experiments: near misses first, then the others, each by its gain."""
    missed = [
        row
        for row in rows
        if row.decision == "discard"
        and row.delta is not None
        and row.evidence == "measured"
    ]
    sign = 1 if lower_is_better else -1
    return sorted(missed, key=lambda row: (not near_miss(row), sign * (row.delta or 0)))


@dataclass(frozen=True, slots=True)
class InForce:
    """The program.md that holds now, for whoever is not the night itself."""

    program: Program
    text: str
    fault: str  # why it is not the one in the folder; "" if it is


def in_force(lab: Lab, ledger: Ledger) -> InForce:
    """program.md as it stands, or the last one on record that can be read.

    LabError where there is none: what is wrong with the one in the folder.
    """
    text = lab.read("program.md")
    try:
        return InForce(program.parse(text), text, "")
    except LabError as error:
        for old in ledger.programs():
            with suppress(LabError):
                return InForce(program.parse(old), old, str(error))
        raise


def faults(lab: Lab) -> list[str]:
    """What is wrong with program.md, as every view says it; nothing if it is fine."""
    try:
        text = lab.read("program.md")
        program.parse(text)
    except LabError as error:
        return [f"{error}; the last good program.md stays in force"]
    doubt = program.doubtful(text)
    return [doubt] if doubt else []


def literal(source: str, name: str, default: Any) -> Any:
    """A top-level constant of a file, without running it."""
    try:
        body = constants.tree_of(source).body
    except SyntaxError:
        return default
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    return node.value.value
    return default


def queue(
    lab: Lab, ledger: Ledger, file: Path, title: str, by: str, reason: str
) -> tuple[int, float]:
    """Put a person's train.py on record: (experiment, minutes to its verdict)."""
    source = read_candidate(file)
    return queue_source(
        lab, ledger, source, title, by, reason, changed_from(ledger, source)
    )


def changed_from(ledger: Ledger, source: str) -> Champion | None:
    """What a file was made of: the champion's, or what `context` shows to start from.

    A person copies train.py, which is the champion's; an agent may have taken the file
    that it read. Whichever is nearer. None: there is no champion.
    """
    champion, start = ledger.champion, ledger.start
    if champion is None or start is None or start.blob == champion.blob:
        return champion
    return min(
        (champion, start), key=lambda one: lines_apart(ledger.source(one.blob), source)
    )


def lines_apart(before: str, after: str) -> int:
    """How many lines two files differ by."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    return sum(line[0] in "+-" for line in lines)


def queue_source(
    lab: Lab,
    ledger: Ledger,
    source: str,
    title: str,
    by: str,
    reason: str,
    start: Champion | None = None,
) -> tuple[int, float]:
    """The same for a text, changed from `start`; None: from the champion's."""
    champion = start or ledger.champion
    if champion is None:
        raise NotYet(
            "there is no champion to compare with yet. Next: autoresearch run, which "
            "measures the train.py of this lab first"
        )
    if not one_line(title):
        raise LabError('the title is empty. Next: autoresearch try FILE "what is new"')
    name = one_line(by) or login()
    strategy = lab.read("program.md")
    ledger.remember(git_blob(strategy), strategy)
    proposal = Proposal(
        None,
        one_line(title)[:200],
        source,
        champion.blob,
        f"human:{name}",
        reason,
        git_blob(strategy),
    )
    waiting = len(ledger.open())
    code = rules.fingerprint(source)
    admitted = ledger.admit(proposal, git_blob(source), code)
    assert admitted.number is not None
    row = ledger.row(champion.number)
    each = 0.0 if row is None else row.seconds + row.evaluation_seconds
    return admitted.number, (waiting + 1) * each / 60


def login() -> str:
    """Who sits here: root in a container has no $USER, and a name all the same."""
    with suppress(OSError, KeyError, ImportError):
        return one_line(getpass.getuser()) or "someone"
    return "someone"


def hurry(lab: Lab) -> str:
    """What `stop --now` throws away of what is in hand; "" where nothing is."""
    found = running(lab) or {"runs": []}
    known = {run.get("experiment"): run.get("finished", 0) for run in found["runs"]}
    done = sum(known.values())
    if not found["runs"]:
        return ""
    lost = f" and {done} finished with it" if done else ""
    return f"the run in hand is lost{lost}; its experiment begins again with run"


def read_candidate(file: Path) -> str:
    """A train.py from anywhere, or LabError."""
    try:
        if file.stat().st_size > LARGEST_FILE_BYTES:
            raise LabError(f"{file} is larger than 1 MB. Next: shorten it")
        return file.read_bytes().decode()
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LabError(f"{file} is not UTF-8 text. Next: save it as such") from None


def set_aside(path: Path) -> None:
    """Move a ledger out of the way, without losing it."""
    for suffix in ("", "-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.replace(path.with_name(f"{path.name}.before-rebuild{suffix}"))
