"""What proposing costs: the size and time of a context, preflight, and an idle GPU.

    python benchmarks/proposing.py --json

context_*    a ledger of a thousand experiments over the flagship's train.py, read anew
preflight_*  the edits of `benchmarks/edits.py` on the flagship as sized for a GPU:
             share of the broken caught, share of the sound refused, median seconds of
             one (wall, and of CPU time, which a busy machine does not stretch);
             `later`: of the edits that were written without knowing the checks

idle_share   the GPU's time between two runs on lab `line` stretched to 20 s a run, with
             a model that takes 60 s to answer: share of the night, baseline left out

Parts are chosen with --only; preflight takes some minutes.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch import loop
from autoresearch.commands import new
from autoresearch.experiment import (
    Candidate,
    Device,
    Failure,
    Proposal,
    Run,
    Score,
    Verdict,
)
from autoresearch.git import (
    Repository,
    compute_blob_id,
)
from autoresearch.lab import apparatus, constants, constraints
from autoresearch.lab.folder import Lab
from autoresearch.measure import preflight
from autoresearch.measure.workbench import (
    RunTerms,
    Workbench,
    host_paths,
)
from autoresearch.proposers import context
from autoresearch.proposers.search import round_value, sample_value
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.sandbox import selftest
from autoresearch.sandbox.process import (
    ResourceLimits,
    StopFlag,
)
from benchmarks import edits
from tests.model_server import ModelServer, reply
from tests.nights import line_lab

FLAGSHIP = ROOT / "autoresearch" / "labs" / "gpt"


def score_of(proposal, value):
    """One run's score, with what a run says of itself."""
    facts = (("tokens", 93_000_000), ("depth", 8), ("train_loss", 3.1), ("mfu", 45.2))
    run = Run(Candidate(proposal, "b"), 0, 300.0, 38.0, 18.9, Path(), facts, Path("x"))
    return Score(run, value, 0.0, 9.0)


def change(rng, source, number):
    """(title, new source): a constant most of the time, else some lines of code."""
    if number % 3:
        knob = rng.choice(
            [c for c in constants.parse_constants(source) if not c.is_fixed]
        )
        value = rng.choice(knob.choices) if knob.choices else sample_value(knob, rng)
        value = value if knob.choices else round_value(knob, value)
        text = constants.replace_constants(source, {knob.name: value})
        return f"{knob.name} {knob.spelling} -> {value}", text
    lines = source.split("\n")
    at = rng.randrange(len(lines) // 2, len(lines))
    lines.insert(at, f"# idea {number}: gate the values of every second layer, softly")
    return f"gate the values of every second layer, variant {number}", "\n".join(lines)


def thousand(path, source, count, seed=1):
    """A ledger as a long night leaves it."""
    rng, ledger = random.Random(seed), Ledger(path)
    ledger.begin_session("series", "{}", 0, "{}")
    baseline = Proposal(0, "baseline", source, "", "human")
    baseline = ledger.admit_proposal(baseline, compute_blob_id(source), "code")
    scores = tuple(score_of(baseline, 1.09 + d) for d in (0, 0.0006, -0.0004))
    ledger.record_verdict(
        Verdict("keep", "baseline", scores, None), commit=None, at=0.0
    )
    for number in range(1, count + 1):
        champion = ledger.champion
        title, text = change(rng, ledger.load_source(champion.blob), number)
        who = ("search", "claude", "anthropic:claude-sonnet-4-5")[number % 3]
        proposal = Proposal(None, title, text, champion.blob, who, "it may help " * 12)
        proposal = ledger.admit_proposal(
            proposal, compute_blob_id(text), constraints.fingerprint_code(text)
        )
        if rng.random() < 0.12:
            failure = Failure(proposal, "crash", "RuntimeError: shapes do not match")
            verdict = Verdict("failed", "crash: RuntimeError", failure, champion)
        else:
            value = champion.values[0] + rng.gauss(0.003, 0.002)
            kept = value < champion.values[0]
            word = "keep" if kept else "discard"
            verdict = Verdict(word, "", (score_of(proposal, value),), champion)
        ledger.record_verdict(verdict, commit=None, at=float(number))
    ledger.close()


def context_of(count):
    """(tokens, seconds, bytes equal) of a context built from a ledger just opened."""
    source = (FLAGSHIP / "train.py").read_text()
    asked = context.ContextRequest(
        (FLAGSHIP / "program.md").read_text(), "val_bpb", "80 lines"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        thousand(path, source, count)
        texts, seconds = [], []
        for _ in range(5):
            ledger = Ledger(path)
            begun = time.perf_counter()
            texts.append(context.build_context(ledger, asked))
            seconds.append(time.perf_counter() - begun)
            ledger.close()
    return {
        "context_tokens": context.estimate_tokens(texts[0]),
        "context_bytes": len(texts[0].encode()),
        "context_seconds": round(statistics.median(seconds), 3),
        "context_identical": len(set(texts)) == 1,
        "context_sample": texts[0],
    }


def preflight_of(every):
    """How many of the broken and of the sound edits are refused, and in what time.

    The second set is reported by itself as well: it was written by somebody who did not
    know how a rehearsal checks.
    """
    first, second = edits.flagship("gpu"), edits.flagship("gpu", later=True)
    sets = (
        (first, "broken", edits.broken(first)),
        (first, "sound", edits.sound(first)),
        (second, "broken later", edits.later(second, edits.LATER_BROKEN)),
        (second, "sound later", edits.later(second, edits.LATER_SOUND)),
    )
    tried = [
        one
        for source, part, files in sets
        for one in rehearsals(source, part, files[::every])
    ]
    broken = [t for t in tried if t.part.startswith("broken")]
    sound = [t for t in tried if t.part.startswith("sound")]
    later = [t for t in broken if t.part.endswith("later")]
    return {
        "preflight_broken": len(broken),
        "preflight_caught": share(broken),
        "preflight_later": len(later),
        "preflight_caught_later": share(later),
        "preflight_sound": len(sound),
        "preflight_false": share(sound),
        "preflight_seconds": round(statistics.median(t.seconds for t in tried), 2),
        "preflight_cpu_seconds": round(statistics.median(t.cpu for t in tried), 2),
        "preflight_longest_seconds": round(max(t.seconds for t in tried), 2),
        "preflight_missed": [t.name for t in broken if not t.why],
        "preflight_wrong": [t.name for t in sound if t.why],
    }


@dataclass(frozen=True)
class Tried:
    """One edit, rehearsed."""

    part: str
    name: str
    why: str  # "": it passed
    seconds: float
    cpu: float


class Counting(preflight.Preflight):
    """Preflight that remembers how much CPU time its last rehearsal took."""

    cpu_seconds = 0.0

    def rehearse(self, source):
        found = super().dry_run(source)
        self.cpu_seconds = found.cpu_seconds
        return found


def share(tried):
    """Of those that were refused."""
    return round(statistics.fmean(bool(t.why) for t in tried), 3)


def rehearsals(source, part, files):
    """Every file rehearsed against a champion, as in a night on a large card."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "lab"
        new.create_lab(folder, "gpt", None, None, "gpu")
        lab = Lab.find(folder)
        ledger = Ledger(lab.ledger_path)
        ledger.begin_session("series", "{}", 0, "{}")
        baseline = Proposal(0, "baseline", source, "", "human")
        baseline = ledger.admit_proposal(baseline, compute_blob_id(source), "code")
        scores = (score_of(baseline, 1.0),)
        ledger.record_verdict(Verdict("keep", "", scores, None), commit=None, at=0.0)
        terms = RunTerms(300.0, None, 15.0, 3600.0, ResourceLimits(memory_gb=80.0))
        found = apparatus.load_apparatus(lab, Repository(folder))
        walls, _ = selftest.find_best_backend(host_paths(lab), Device())
        bench = Workbench(
            lab, found, terms, StopFlag(), lambda candidate, progress: None, walls
        )
        check = Counting(bench, ledger)
        check(baseline)  # the champion itself
        for name, text in files:
            begun = time.monotonic()
            why = check(Proposal(None, name, text, compute_blob_id(source), "x"))
            seconds = time.monotonic() - begun
            yield Tried(part, name, why, seconds, check.cpu_seconds)
            said = f"{seconds:5.1f} s ({check.cpu_seconds:.1f} CPU)"
            print(f"{part:<12} {said}  {name}: {why}", file=sys.stderr)
        check.close()


class Timed:
    """A pool that knows how long its device was held."""

    def __init__(self, inner):
        self._inner, self.busy_seconds, self.marks = inner, 0.0, []

    @property
    def free_count(self):
        return self._inner.free

    def submit(self, work):
        self._inner.submit(work)

    def next_result(self):
        begun = time.monotonic()
        done = self._inner.next()
        if done is not None:
            self.marks.append((begun, time.monotonic()))
        return done


def idle_of(runs, think_seconds, run_seconds):
    """Share of the time between the first and the last run in which nothing ran."""
    counted = iter(range(1, 10_000))

    def slowly(prompt):
        value = next(counted)
        time.sleep(think_seconds)
        old = prompt.partition("\nWEIGHT_INIT = ")[2].split()[0]
        line = "WEIGHT_INIT = {}  # -1 .. 1"
        return reply(f"start {value}", line.format(old), line.format(f"0.{value:04}"))

    fence = f"budget_seconds = {run_seconds}\nbudget_tolerance_seconds = 2"
    with tempfile.TemporaryDirectory() as made, ModelServer(slowly) as server:
        lab = line_lab(Path(made) / "lab", fence)
        asked = session.SessionOptions(
            experiments=runs, proposers=(server.spec,), seed=1
        )
        with session.open_session(lab, asked, StopFlag()) as (opened, _):
            timed = Timed(opened.pool)
            rows = list(loop.research(replace(opened, pool=timed)))
    marks = timed.marks[rows[0].runs :]  # those of the baseline come first
    busy = sum(end - begin for begin, end in marks)
    whole = marks[-1][1] - marks[0][0]
    authors = [row.author for row in rows[1:]]
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(marks)]
    return {
        "idle_share": round(1 - busy / whole, 4),
        "idle_longest_gap_seconds": round(max(gaps), 2),
        "idle_runs": len(marks),
        "idle_by_the_model": authors.count(server.spec),
        "idle_by_search": authors.count("search"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--show", action="store_true", help="print the context itself")
    parser.add_argument("--only", choices=("context", "preflight", "idle"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--every", type=int, default=1, help="only each n-th edit")
    options = parser.parse_args()
    found = {}
    if options.only in (None, "context"):
        found |= context_of(options.experiments)
        sample = found.pop("context_sample")
        if options.show:
            print(sample)
    if options.only in (None, "preflight"):
        found |= preflight_of(options.every)
    if options.only in (None, "idle"):
        found |= idle_of(options.runs, 60.0, 20.0)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
