"""Cost of proposing: prompt size and time, dry runs of proposals, idle GPU time.

    python benchmarks/proposing.py --json               (about 20 minutes)
    python benchmarks/proposing.py --only context --json

context      the prompt for a ledger of a thousand experiments on the flagship's
             train.py, built from a ledger just opened
preflight    dry runs of the edits in `edits.py` on the flagship as sized for a GPU;
             `later`: the edits that were written without knowledge of the checks
idle         GPU time between two runs of lab `line`, stretched to 20 s a run, with a
             model that takes 60 s to answer; the baseline is left out

JSON keys:
  quick                            whether --quick was given: then no number counts
  context_tokens                   size of the prompt, as it is counted
  context_bytes                    size of the prompt
  context_seconds                  time to build it, median of 5
  context_identical                whether all 5 were the same
  preflight_broken                 broken edits that were tried
  preflight_caught                 share of them refused
  preflight_later                  of these, edits of the later set
  preflight_caught_later           share of them refused; null where there were none
  preflight_sound                  sound edits that were tried
  preflight_false                  share of them refused
  preflight_seconds                wall time of one, median
  preflight_cpu_seconds            CPU time of one, median; a busy machine does not
                                   stretch it
  preflight_longest_seconds        wall time of one, longest
  preflight_missed                 broken edits that passed
  preflight_wrong                  sound edits that were refused
  idle_share                       share of the session in which nothing ran
  idle_longest_gap_seconds         longest time without a run
  idle_runs                        runs
  idle_by_the_model                experiments proposed by the model
  idle_by_search                   experiments proposed by the stand-in, `search`
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


def make_score(proposal, value):
    """One run's score, with what a run says of itself."""
    facts = (("tokens", 93_000_000), ("depth", 8), ("train_loss", 3.1), ("mfu", 45.2))
    run = Run(Candidate(proposal, "b"), 0, 300.0, 38.0, 18.9, Path(), facts, Path("x"))
    return Score(run, value, 0.0, 9.0)


def make_change(rng, source, number):
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


def write_ledger(path, source, count, seed=1):
    """A ledger as a long session leaves it."""
    rng, ledger = random.Random(seed), Ledger(path)
    ledger.begin_session("series", "{}", 0, "{}")
    baseline = Proposal(0, "baseline", source, "", "human")
    baseline = ledger.admit_proposal(baseline, compute_blob_id(source), "code")
    scores = tuple(make_score(baseline, 1.09 + d) for d in (0, 0.0006, -0.0004))
    ledger.record_verdict(
        Verdict("keep", "baseline", scores, None), commit=None, at=0.0
    )
    for number in range(1, count + 1):
        champion = ledger.champion
        title, text = make_change(rng, ledger.load_source(champion.blob), number)
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
            verdict = Verdict(word, "", (make_score(proposal, value),), champion)
        ledger.record_verdict(verdict, commit=None, at=float(number))
    ledger.close()


def measure_context(count):
    """Size and time of a prompt built from a ledger just opened."""
    source = (FLAGSHIP / "train.py").read_text()
    asked = context.ContextRequest(
        (FLAGSHIP / "program.md").read_text(), "val_bpb", "80 lines"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        write_ledger(path, source, count)
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


def measure_preflight(every, quick):
    """How many of the broken and of the sound edits are refused, and in what time.

    The second set is also reported separately: its author did not know the checks.
    With `quick`: one broken and one sound edit of the first set.
    """
    first = edits.flagship("gpu")
    sets = [(first, {"broken": edits.broken(first), "sound": edits.sound(first)})]
    if quick:
        every = 1000
    else:
        second = edits.flagship("gpu", later=True)
        later = {
            "broken later": edits.later(second, edits.LATER_BROKEN),
            "sound later": edits.later(second, edits.LATER_SOUND),
        }
        sets.append((second, later))
    tried = []
    for source, parts in sets:
        files = [
            (part, *file) for part, all_ in parts.items() for file in all_[::every]
        ]
        tried += dry_run_files(source, files)
    broken = [t for t in tried if t.part.startswith("broken")]
    sound = [t for t in tried if t.part.startswith("sound")]
    later = [t for t in broken if t.part.endswith("later")]
    return {
        "preflight_broken": len(broken),
        "preflight_caught": refused_share(broken),
        "preflight_later": len(later),
        "preflight_caught_later": refused_share(later),
        "preflight_sound": len(sound),
        "preflight_false": refused_share(sound),
        "preflight_seconds": round(statistics.median(t.seconds for t in tried), 2),
        "preflight_cpu_seconds": round(statistics.median(t.cpu for t in tried), 2),
        "preflight_longest_seconds": round(max(t.seconds for t in tried), 2),
        "preflight_missed": [t.name for t in broken if not t.why],
        "preflight_wrong": [t.name for t in sound if t.why],
    }


@dataclass(frozen=True)
class Tried:
    """One edit after its dry run."""

    part: str
    name: str
    why: str  # "": it passed
    seconds: float
    cpu: float


class MeteredPreflight(preflight.Preflight):
    """Preflight that remembers how much CPU time its last dry run took."""

    cpu_seconds = 0.0

    def dry_run(self, source):
        found = super().dry_run(source)
        self.cpu_seconds = found.cpu_seconds
        return found


def refused_share(tried):
    """The share that was refused; None of nothing."""
    if not tried:
        return None
    return round(statistics.fmean(bool(t.why) for t in tried), 3)


def dry_run_files(source, files):
    """Yield (part, name, train.py) files after a dry run against a champion."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "lab"
        new.create_lab(folder, "gpt", None, None, "gpu")
        lab = Lab.find(folder)
        ledger = Ledger(lab.ledger_path)
        ledger.begin_session("series", "{}", 0, "{}")
        baseline = Proposal(0, "baseline", source, "", "human")
        baseline = ledger.admit_proposal(baseline, compute_blob_id(source), "code")
        scores = (make_score(baseline, 1.0),)
        ledger.record_verdict(Verdict("keep", "", scores, None), commit=None, at=0.0)
        terms = RunTerms(300.0, None, 15.0, 3600.0, ResourceLimits(memory_gb=80.0))
        found = apparatus.load_apparatus(lab, Repository(folder))
        walls, _ = selftest.find_best_backend(host_paths(lab), Device())
        bench = Workbench(
            lab, found, terms, StopFlag(), lambda candidate, progress: None, walls
        )
        check = MeteredPreflight(bench, ledger)
        check(baseline)  # the champion itself
        for part, name, text in files:
            begun = time.monotonic()
            why = check(Proposal(None, name, text, compute_blob_id(source), "x"))
            seconds = time.monotonic() - begun
            yield Tried(part, name, why, seconds, check.cpu_seconds)
            said = f"{seconds:5.1f} s ({check.cpu_seconds:.1f} CPU)"
            print(f"{part:<12} {said}  {name}: {why}", file=sys.stderr)
        check.close()


class TimedPool:
    """A pool of one device that notes when each run began and ended."""

    capacity, has_result = 1, False

    def __init__(self, inner):
        self._inner, self.marks = inner, []

    @property
    def free_count(self):
        return self._inner.free_count

    def submit(self, request):
        self._inner.submit(request)

    def release(self, score):
        self._inner.release(score)

    def next_result(self):
        begun = time.monotonic()
        done = self._inner.next_result()
        if done is not None:
            self.marks.append((begun, time.monotonic()))
        return done


def measure_idle(runs, think_seconds, run_seconds):
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
            timed = TimedPool(opened.pool)
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
    parser.add_argument("--quick", action="store_true", help="seconds, small numbers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--show", action="store_true", help="print the context itself")
    parser.add_argument("--only", choices=("context", "preflight", "idle"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--every", type=int, default=1, help="only each n-th edit")
    options = parser.parse_args()
    if options.quick:
        options.experiments, options.runs = 20, 2
    found = {"quick": options.quick}
    if options.only in (None, "context"):
        found |= measure_context(options.experiments)
        sample = found.pop("context_sample")
        if options.show:
            print(sample)
    if options.only in (None, "preflight"):
        found |= measure_preflight(options.every, options.quick)
    if options.only in (None, "idle"):
        think, run = (1.0, 0.5) if options.quick else (60.0, 20.0)
        found |= measure_idle(options.runs, think, run)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
