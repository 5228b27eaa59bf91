"""Harness overhead per experiment, early and with 10 000 rows; latency of results.

    python benchmarks/overhead.py --json              (about 3 minutes)
    python benchmarks/overhead.py --hearing --json    (under a minute)

Overhead is measured on lab `line`: the median time from asking for a proposal to its
recorded verdict, minus the training itself, with an almost empty ledger and after
`--rows` recorded experiments, all of them changes of the same champion. The rows go
through the recorder that sessions use; only git is fed by one `git fast-import` instead
of several commands per row.

With --hearing the loop, recorder, policy and thread pool are the real ones, and a run
is a sleep of about 2 s on one of 16 devices, while the proposer takes 0.5 s a proposal.
For each experiment: seconds from the end of its last run to its verdict in the ledger.

JSON keys:
  quick                            whether --quick was given: then no number counts
  rows                             rows recorded before the late experiments
  fill_seconds                     time taken to record them
  per_experiment_seconds_10        median overhead with an almost empty ledger
  per_experiment_seconds_10000     median overhead after `rows` rows
  status_seconds_10000             `autoresearch status` after `rows` rows, minus the
                                   start of an interpreter
JSON keys with --hearing:
  quick                            as above
  hearing_devices                  devices, all of this machine
  hearing_experiments              experiments with a verdict, baseline left out
  hearing_runs                     runs they took
  hearing_busy_share               mean share of the devices that were running
  hearing_seconds_median           end of the last run to the verdict
  hearing_seconds_max              the same, the longest; the goal is 1.5 s
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.experiment import Candidate, Device, Proposal, Run, Score, Verdict
from autoresearch.git import Repository, compute_blob_id, identity_environment
from autoresearch.lab import constants
from autoresearch.loop import research
from autoresearch.measure.messages import RunResult
from autoresearch.policies.noise_aware import REMEASURE_INTERVAL
from autoresearch.pools.local import LocalPool
from autoresearch.run import session
from autoresearch.run.dispatcher import candidate_from_champion
from autoresearch.sandbox.process import StopFlag
from tests import nights

RATE_STEP = 1.1  # between two proposed learning rates: far from a near-duplicate
EARLY_RATE, LATE_RATE = 1e-5, 1e-3  # both too small to beat the champion


# -- overhead --------------------------------------------------------------------------


class FastImport(Repository):
    """A repository whose verdict commits go through one `git fast-import` process.

    For many verdicts in a row on an unmoving branch: nothing is kept, nothing is read.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self._head = super().head_commit()
        self._texts = {}  # by blob, until their commit is written
        self._marks = {}  # of every commit so far: it is in no pack yet
        self._process = subprocess.Popen(
            ("git", "-C", str(folder), "fast-import", "--quiet", "--force"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def head_commit(self):
        return self._head

    def find_commit(self, number):
        return None  # the recorder then takes the head, which is the champion's commit

    def write_blob(self, text):
        blob = compute_blob_id(text)
        self._texts[blob] = text.encode()
        return blob

    def create_commit(self, entry, blob, parent):
        who = identity_environment(entry.author, entry.committed_at)
        trailers = "\n".join(f"{key}: {text}" for key, text in entry.trailers)
        message = f"{entry.title}\n\n{trailers}\n".encode()
        source, mark = self._texts.pop(blob), len(self._marks) + 1
        lines = [b"commit refs/fill", b"mark :%d" % mark]
        for key in ("AUTHOR", "COMMITTER"):
            name, mail = who[f"GIT_{key}_NAME"], who[f"GIT_{key}_EMAIL"]
            at = f"{key.lower()} {name} <{mail}> {int(entry.committed_at)} +0000"
            lines.append(at.encode())
        lines += [b"data %d" % len(message), message, b"from " + parent.encode()]
        lines += [b"M 100644 inline train.py", b"data %d" % len(source), source]
        self._write(*lines, b"get-mark :%d" % mark)
        commit = self._process.stdout.readline().decode().strip()
        self._marks[commit] = mark
        return commit

    def set_experiment_ref(self, number, commit):
        mark = self._marks[commit]
        self._write(b"reset refs/autoresearch/%d\nfrom :%d\n" % (number, mark))

    def pack_objects(self):
        pass  # all of it is in one pack already

    def close(self):
        """Write what is left, and make the repository an ordinary one again."""
        self._process.communicate()
        assert self._process.returncode == 0
        self.run_git("update-ref", "-d", "refs/fill")
        super().pack_objects()

    def _write(self, *lines):
        self._process.stdin.write(b"\n".join(lines) + b"\n")
        self._process.stdin.flush()


def filler_source(source, number):
    """The `number`-th change of the champion, no near-duplicate of any other.

    Half are pairs of constants, half are lines of code; none sets LEARNING_RATE, which
    is what the timed proposals change.
    """
    pair, is_code = divmod(number, 2)
    if is_code:
        return source + f"\nprint('filler', {number})\n"
    row, column = divmod(pair, 100)
    values = {"WEIGHT_DECAY": 1e-9 * 1.1**row, "WEIGHT_INIT": 1e-6 * 1.1**column}
    return constants.replace_constants(source, values)


def make_score(candidate, seed, value):
    """The score of a run that took a tenth of a second."""
    facts, weights, log = (("width", 1),), Path("weights"), Path("x.log")
    run = Run(candidate, seed, 0.1, 0.1, 0.01, weights, facts, log)
    return Score(run, value, 0.0, 0.1)


def fill(lab, count):
    """Record discarded experiments, without running them, until there are `count`."""
    options = session.SessionOptions(proposers=("mailbox",), seed=1)
    with session.open_session(lab, options, StopFlag()) as (opened, _):
        recorder = opened.recorder
        ledger, source = recorder.ledger, lab.read_file("train.py")
        recorder.repository = imported = FastImport(lab.folder)
        ledger.db.execute("pragma synchronous = off")
        champion = ledger.champion
        for number in range(len(ledger.load_rows()), count):
            text = filler_source(source, number)
            proposal = recorder.admit_proposal(
                Proposal(None, f"filler {number}", text, champion.blob, "script:fill")
            )
            candidate = Candidate(proposal, imported.write_blob(text))
            score = make_score(candidate, 1, champion.values[0] + 1 + number / 1e6)
            recorder.record_verdict(Verdict("discard", "filler", (score,), champion))
            runs = len(champion.values)
            if number >= REMEASURE_INTERVAL * runs:  # as the policy would have had it
                again = candidate_from_champion(source, champion)
                value = champion.values[runs % 3]
                ledger.record_runs((make_score(again, 1 + runs, value),), "champion")
                champion = ledger.champion
            if number % 100 == 0:
                print(
                    f"\rfilling {number}/{count}", end="", file=sys.stderr, flush=True
                )
        imported.close()
        ledger.db.execute("pragma synchronous = full")
    print(file=sys.stderr)


def time_experiments(lab, count, first_rate):
    """Seconds of overhead of each of `count` real experiments."""
    rates = [first_rate * RATE_STEP**n for n in range(count)]
    proposals = [nights.rate(rate) for rate in rates]
    options = session.SessionOptions(
        proposers=(nights.script(lab, *proposals),), seed=1, experiments=count
    )
    found = []
    with session.open_session(lab, options, StopFlag()) as (opened, _):
        begun = time.perf_counter()
        for row in itertools.islice(research(opened), count):
            took = time.perf_counter() - begun
            if row.kind is not None:
                raise SystemExit(f"experiment {row.number} did not run: {row.why}")
            found.append(took - row.seconds)
            begun = time.perf_counter()
    return found


def time_status(lab, repeats):
    """Median seconds of `autoresearch status`, beyond a bare interpreter's."""
    words = (*nights.AUTORESEARCH, "status", "--json")
    bare = (sys.executable, "-c", "pass")

    def median(command):
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            subprocess.run(command, cwd=lab.folder, check=True, capture_output=True)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    return median(words) - median(bare)


def measure_overhead(lab, options):
    """Overhead with an almost empty ledger, and with a long one."""
    nights.run(lab)
    early = time_experiments(lab, options.experiments, EARLY_RATE)
    begun = time.perf_counter()
    fill(lab, options.rows)
    fill_seconds = time.perf_counter() - begun
    late = time_experiments(lab, options.experiments, LATE_RATE)
    return {
        "rows": options.rows,
        "fill_seconds": round(fill_seconds, 1),
        "per_experiment_seconds_10": round(statistics.median(early), 4),
        "per_experiment_seconds_10000": round(statistics.median(late), 4),
        "status_seconds_10000": round(time_status(lab, options.repeats), 4),
    }


# -- hearing results -------------------------------------------------------------------


class SleepingWorker:
    """Carries out requests by sleeping; notes when each experiment's last run ended."""

    def __init__(self, run_seconds):
        self._run_seconds = run_seconds
        self._lock = threading.Lock()
        self._rng = random.Random(1)
        self._levels = {}  # what each train.py is worth
        self.ended_at = {}  # by experiment, time.perf_counter() of its last run
        self.busy_seconds = 0.0

    def __call__(self, request, device):
        candidate = request.candidate
        number, blob = candidate.proposal.number, candidate.blob
        with self._lock:
            seconds = self._run_seconds * self._rng.uniform(0.9, 1.1)
            better = self._rng.random() < 0.2
            level = self._levels.setdefault(blob, 0.99 if better else 1.01)
            value = level + self._rng.gauss(0, 0.003)
        if request.score is not None:  # the holdout of a run that is scored
            score = replace(request.score, holdout=request.score.value)
        else:
            time.sleep(seconds)
            path = Path("sleeping")
            run = Run(candidate, request.seed, seconds, 0.0, 0.1, path, (), path)
            holdout = value if request.holdout else None
            score = Score(run, value, 0.0, 0.0, time.time(), holdout=holdout)
        with self._lock:
            self.busy_seconds += 0.0 if request.score else seconds
            self.ended_at[number] = time.perf_counter()
        return RunResult(request, score, device)

    def release(self, score):
        pass


class SlowProposer:
    """Sets one constant to a new value, after a pause as long as a model's."""

    name = "slow"
    starts = (("LEARNING_RATE", 1e-4), ("WEIGHT_DECAY", 1e-5), ("WEIGHT_INIT", 1e-4))
    values_each = 90

    def __init__(self, think_seconds):
        self._think_seconds, self._count = think_seconds, 0

    @property
    def exhausted(self):
        return self._count >= self.values_each * len(self.starts)

    def propose(self, ledger):
        time.sleep(self._think_seconds)
        place, step = divmod(self._count, self.values_each)
        self._count += 1
        name, start = self.starts[place]
        value = start * RATE_STEP**step
        champion = ledger.champion
        source = ledger.load_source(champion.blob)
        text = constants.replace_constants(source, {name: value})
        return Proposal(None, f"{name} {value:.3g}", text, champion.blob, self.name)


def measure_hearing(lab, options):
    """Seconds from the end of each experiment's last run to its verdict."""
    devices = (Device(),) * options.devices
    worker = SleepingWorker(options.run_seconds)
    asked = session.SessionOptions(
        proposers=("mailbox",), seed=1, experiments=options.experiments
    )
    waits, runs, begun = [], 0, None
    with session.open_session(lab, asked, StopFlag()) as (opened, _):
        opened = replace(
            opened,
            pool=LocalPool(worker, devices),
            devices=devices,
            proposer=SlowProposer(options.think_seconds),
        )
        for row in research(opened):
            heard = time.perf_counter()
            if not row.parent:  # the baseline: nothing is proposed before it
                begun, worker.busy_seconds = heard, 0.0
                continue
            if row.kind is not None:
                raise SystemExit(f"experiment {row.number} did not run: {row.why}")
            waits.append(heard - worker.ended_at[row.number])
            runs += row.runs
            print(f"\rheard {len(waits)}", end="", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - begun
    print(file=sys.stderr)
    return {
        "hearing_devices": options.devices,
        "hearing_experiments": len(waits),
        "hearing_runs": runs,
        "hearing_busy_share": round(worker.busy_seconds / seconds / options.devices, 3),
        "hearing_seconds_median": round(statistics.median(waits), 3),
        "hearing_seconds_max": round(max(waits), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hearing", action="store_true", help="only the latency")
    parser.add_argument("--experiments", type=int, help="timed; default 20, hearing 60")
    parser.add_argument("--rows", type=int, help="default 10 000")
    parser.add_argument("--repeats", type=int, default=9, help="of `status`")
    parser.add_argument("--devices", type=int, default=16, help="with --hearing")
    parser.add_argument("--run-seconds", type=float, default=2.0, help="the same")
    parser.add_argument("--think-seconds", type=float, default=0.5, help="the same")
    parser.add_argument("--quick", action="store_true", help="seconds, small numbers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.repeats = options.rows or 60, 1
        options.experiments = options.experiments or (6 if options.hearing else 2)
        options.run_seconds, options.think_seconds = 0.4, 0.1
    options.rows = options.rows or 10_000
    options.experiments = options.experiments or (60 if options.hearing else 20)
    measure = measure_hearing if options.hearing else measure_overhead
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-overhead-"))
    try:
        lab = nights.line_lab(folder / "lab")
        found = {"quick": options.quick, **measure(lab, options)}
    finally:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
