"""Sandbox start-up cost, kill latency, evaluation cost, and cheats the audit refuses.

    python benchmarks/trust.py --json                 (about 15 minutes on two cores)
    python benchmarks/trust.py --part audit --json    (one part alone)

cage     time from starting a process at the best sandbox level here to its first
         message, minus a bare interpreter with the same imports; alternating
kill     100 hostile processes (daemons that ignore signals, fork loops, busy threads,
         log floods, stopped processes) with a short time limit: how late the kill was
         sent, when all were dead, how many were alive 100 ms later
eval     claim and audit of a million tokens against the same sum in one process; the
         start-up of the two processes is reported apart
audit    real losses of two trained models: cheats worth 0.003 and 0.001 bits per byte
         in many shapes, and honest answers, through the real `audit`, many times

With --quick everything is tiny, the text 120 000 bytes instead of 2.3 million: the
numbers mean nothing then.

JSON keys:
  quick                            whether --quick was given: then no number counts
  level                            sandbox level that was tested
  cage_ms                          start-up that the sandbox adds, median
  caged_ms                         start-up with the sandbox, median
  bare_ms                          start-up of the bare interpreter, median
  overrun_ms                       from the time limit to the kill, longest
  overrun_ms_median                the same, median
  overruns                         processes that reached their time limit
  gone_ms                          from the kill until all were dead, median
  gone_ms_worst                    the same, longest
  left                             processes alive 100 ms after the kill was due
  eval_tokens                      validation tokens
  eval_ratio                       evaluation without start-up / one process, median
  eval_ratios                      the same, each repeat
  eval_one_process_seconds         evaluation in one process, median
  eval_startup_seconds             start-up of the two processes, median
  eval_gap_bpb                     largest difference of the two scores
  audits                           positions per audit
  models_differ_nats               sd of the two models' difference per token
  refused_003                      share of cheats of 0.003 refused, worst shape
  refused_003_low                  lower 95 % bound (Wilson) of it
  refused_003_worst                that shape
  refused_003_shapes               number of shapes
  refused_001*                     the same for cheats of 0.001
  refused_honest                   share of honest answers refused
  refused_honest_high              upper 95 % bound of it
  refused_honest_bf16              the same with the rounding noise of bf16
  refused_honest_bf16_high         upper 95 % bound of it
  refused_003_knowing_the_champion  a cheat that knows the champion's losses
  shapes                           every shape's share
"""

import argparse
import contextlib
import json
import math
import os
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

import numpy as np

from autoresearch.commands import new
from autoresearch.devices import discovery
from autoresearch.experiment import Candidate, Device, Proposal
from autoresearch.git import (
    Repository,
    compute_blob_id,
    identity_environment,
)
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure import audit, evaluator, trainer
from autoresearch.measure.calibration import ServingTimes
from autoresearch.measure.workbench import (
    RunTerms,
    Workbench,
    host_paths,
)
from autoresearch.sandbox import process, selftest
from autoresearch.sandbox.process import (
    LimitExceeded,
    ProcessExited,
    ResourceLimits,
    SandboxedProcess,
    StopFlag,
)
from autoresearch.sealed_memory import ProtocolError

IMPORTS = (
    "import sys, autoresearch.guest.runtime, ctypes, json, os\n"
    "from autoresearch.sandbox.restrictions import SandboxRestrictions"
)
CAGED = (
    f"{IMPORTS}\n"
    "if sys.argv[2]: SandboxRestrictions.from_argument(sys.argv[2]).apply()\n"
    "os.write(int(sys.argv[1]), b'\\x02\\0\\0\\0{}')"
)
BARE = f"{IMPORTS}\nos.write(1, b'x')"

HOSTILE = (
    # daemons that ignore every signal
    "import os, signal, time\n"
    "for n in range(1, 32):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n"
    "for _ in range(10):\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        if os.fork(): os._exit(0)\n"
    "        while True: time.sleep(0.1)\n"
    "while True: time.sleep(1)\n",
    # a fork loop
    "import os\nwhile True:\n    if os.fork(): os._exit(0)\n",
    # busy threads, in two processes
    "import os, threading\n"
    "os.fork()\n"
    "def spin():\n"
    "    while True: pass\n"
    "for _ in range(4): threading.Thread(target=spin).start()\n",
    # floods of messages and of log output
    "import os, sys\n"
    "fd = int(sys.argv[1])\n"
    "os.fork()\n"
    "while True:\n"
    "    os.write(1, b'x' * 4096)\n"
    "    os.write(fd, b'\\x02\\0\\0\\0{}' * 50)\n",
    # a stopped process with stopped children
    "import os, signal, time\n"
    "for _ in range(5):\n"
    "    if os.fork() == 0:\n"
    "        os.kill(os.getpid(), signal.SIGSTOP)\n"
    "os.kill(os.getpid(), signal.SIGSTOP)\n",
)
HONEST_SD_NATS = 0.003  # of bf16 between two kernels; CPUs answer the same to 1e-6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("cage", "kill", "eval", "audit"))
    parser.add_argument("--repeats", type=int, default=3, help="of eval; default 3")
    parser.add_argument("--starts", type=int, default=40, help="of cage; default 40")
    parser.add_argument("--kills", type=int, default=100, help="of kill; default 100")
    parser.add_argument(
        "--draws", type=int, default=4000, help="of audit; default 4000"
    )
    parser.add_argument("--quick", action="store_true", help="seconds, small numbers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.starts = 1, 2
        options.kills, options.draws = len(HOSTILE), 20
    found = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="autoresearch-trust-") as place:
        folder = Path(place).resolve()
        empty = Lab(folder / "empty")
        empty.folder.mkdir()
        slot = discovery.discover_devices()[0]
        walls, missed = selftest.find_best_backend(host_paths(empty), slot)
        found["level"] = walls.level
        tell(options, f"level {walls.level} {missed}")
        parts = [options.part] if options.part else ["cage", "kill", "eval", "audit"]
        if "cage" in parts:
            found.update(measure_cage(empty, walls, options.starts))
            tell(options, found)
        if "kill" in parts:
            found.update(measure_kills(empty, walls, options.kills))
            tell(options, found)
        if {"eval", "audit"} & set(parts):
            bench, runs = train_models(folder / "lab", walls, slot, options)
            if "eval" in parts:
                found.update(measure_evaluation(bench, runs[0], slot, options.repeats))
                tell(options, found)
            if "audit" in parts:
                found.update(measure_refusals(bench, runs, slot, options))
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def tell(options, words):
    if not options.json:
        print(words, file=sys.stderr, flush=True)


# -- sandbox start-up and kill latency -------------------------------------------------


def start_process(lab, walls, code):
    """A sandboxed process that runs this code, in a folder of its own."""
    place = Path(tempfile.mkdtemp(dir=lab.folder))
    (place / "train.py").write_text("")
    return SandboxedProcess(
        place,
        lab=lab.folder,
        device=Device(),
        limits=ResourceLimits(4.0),
        stop=StopFlag(),
        backend=walls,
        code=code,
    )


def measure_cage(lab, walls, repeats):
    """Start-up that the sandbox adds to a bare interpreter, in milliseconds."""
    caged, bare = [], []
    for _ in range(repeats):
        begun = time.monotonic()
        with start_process(lab, walls, CAGED) as guest:
            guest.receive(begun + 10)
            caged.append(time.monotonic() - begun)
        begun = time.monotonic()
        command = (sys.executable, "-I", "-B", "-c", BARE)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.read(1)
            bare.append(time.monotonic() - begun)
    return {
        "cage_ms": 1000 * (statistics.median(caged) - statistics.median(bare)),
        "caged_ms": 1000 * statistics.median(caged),
        "bare_ms": 1000 * statistics.median(bare),
    }


def measure_kills(lab, walls, count):
    """Kill hostile processes after 0.4 s: delay of the kill, survivors after 100 ms.

    The overrun is from the deadline to the kill: no message that arrives after the
    deadline is read, whatever the process still computes. `left` is counted 100 ms
    after the deadline, whether or not the kill has returned by then.
    """
    late, gone, left = [], [], 0
    for turn in range(count):
        guest = start_process(lab, walls, HOSTILE[turn % len(HOSTILE)])
        deadline = time.monotonic() + 0.4
        is_alive = read_messages(guest, deadline - 0.15)
        inside = find_pid_namespaces(guest._process.pid)  # slow, so before the deadline
        if is_alive and read_messages(guest, deadline):
            late.append(time.monotonic() - deadline)
        sent = time.monotonic()  # a flood is cut off before the deadline
        killing = threading.Thread(target=time_kill, args=(guest, gone))
        killing.start()
        time.sleep(max(0.0, max(sent, deadline) + 0.1 - time.monotonic()))
        left += len(list_processes_in(inside))
        killing.join()
    return {
        "overrun_ms": 1000 * max(late),
        "overrun_ms_median": 1000 * statistics.median(late),
        "overruns": len(late),
        "gone_ms": 1000 * statistics.median(gone),
        "gone_ms_worst": 1000 * max(gone),
        "left": left,
    }


def time_kill(guest, gone):
    """Kill a process, and note the time until its whole tree was gone."""
    sent = time.monotonic()
    guest.kill()
    gone.append(time.monotonic() - sent)


def read_messages(guest, deadline):
    """Read messages until the deadline; False if the process ended or broke a limit."""
    try:
        while True:
            guest.receive(deadline)
    except TimeoutError:
        return True
    except (ProcessExited, ProtocolError, LimitExceeded):
        return False


def find_pid_namespaces(pid):
    """The pid namespaces of a process's descendants, other than ours."""
    import psutil

    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{child.pid}/ns/pid"))
    return found - {os.readlink("/proc/self/ns/pid")}


def list_processes_in(namespaces):
    """Processes in one of these pid namespaces."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") in namespaces:
                found.append(name)
    return found


# -- cost of the evaluation ------------------------------------------------------------


def train_models(folder, walls, slot, options):
    """Lab gpt with a million validation tokens, and two models trained for 30 s.

    With --quick: the demo profile, and one model trained for 2 s.
    """
    new.create_lab(folder, "gpt", None, None, "demo" if options.quick else "cpu")
    prepare = folder / "prepare.py"
    sizes = {"VALIDATION": 2_300_000, "HOLDOUT": 100_000, "MAXIMUM": 20_000_000}
    book = Repository(folder)
    if not options.quick:
        text = prepare.read_text()
        for name, value in sizes.items():
            text = new.replace_literal(text, f"{name}_BYTES", value)
        prepare.write_text(text)
        book.run_git("add", "-A")
        who = identity_environment("AutoResearch", 0)
        book.run_git("commit", "-qm", "a larger text", who=who)
    lab = Lab.find(folder)
    found = apparatus.load_apparatus(lab, book)
    found.prepare_data(lambda stage, done, total: None)
    limits = ResourceLimits(discovery.default_memory_limit_gb())
    seconds = 2.0 if options.quick else 30.0
    terms = RunTerms(seconds, None, 5.0, 2 * seconds, limits)
    bench = Workbench(
        lab, found, terms, StopFlag(), lambda candidate, progress: None, walls
    )
    source = lab.read_file("train.py")
    runs = []
    for seed in (1,) if options.quick else (1, 2):
        candidate = Candidate(
            Proposal(seed, "x", source, "", "human"), compute_blob_id(source)
        )
        run = trainer.train_candidate(bench, candidate, seed=seed, device=slot)
        kept = lab.state_folder / f"kept-{seed}"
        shutil.copytree(run.weights.parent, kept)
        runs.append(replace(run, weights=kept / run.weights.name))
        tell(options, f"trained seed {seed}")
    return bench, runs


ONE_PROCESS = """
import json, runpy, sys, time
sys.path.insert(0, ".")
import torch, prepare
torch.set_num_threads(int(sys.argv[2]))
class Found(Exception): pass
def begin(build): raise Found(build)
prepare.begin = begin
try: runpy.run_path("train.py")
except Found as found: build = found.args[0]
from autoresearch.guest import safetensors_format, standalone, torch_model
model = build()
state = safetensors_format.decode(open(sys.argv[1], "rb").read())
torch_model.load_state(model, state, "cpu")
prepare.text("validation")
begun = time.monotonic()
value = standalone.evaluate_in_process(prepare, model, "cpu")
print(json.dumps([value, time.monotonic() - begun]))
"""


def measure_evaluation(bench, run, slot, repeats):
    """Time claim and audit, and one process, alternating; start-up apart."""
    ratios, starts, gaps, seconds = [], [], [], []
    tokens = len(bench.apparatus.load_text("validation")[0])
    for _ in range(repeats):
        shutil.rmtree(bench.lab.state_folder / "audit", ignore_errors=True)
        again = bench.lab.state_folder / "again"
        shutil.copytree(run.weights.parent, again, dirs_exist_ok=True)
        once = replace(run, weights=again / run.weights.name)
        score = evaluator.score_run(bench, once, device=slot)
        start = (
            2
            * evaluator.locate_calibration(bench, slot).load_calibration().start_seconds
        )
        value, alone = evaluate_in_one_process(bench, run, slot)
        ratios.append((score.seconds - start) / alone)
        starts.append(start)
        seconds.append(alone)
        gaps.append(abs(value - score.value))
    return {
        "eval_tokens": tokens,
        "eval_ratio": statistics.median(ratios),
        "eval_ratios": ratios,
        "eval_one_process_seconds": statistics.median(seconds),
        "eval_startup_seconds": statistics.median(starts),
        "eval_gap_bpb": max(gaps),
    }


def evaluate_in_one_process(bench, run, slot):
    """(score, seconds) without sandbox or audit, on as many threads.

    With the thread settings of a sandboxed process: threads that spin while they wait
    took ten times as long on a busy machine.
    """
    command = (sys.executable, "-c", ONE_PROCESS, str(run.weights), str(slot.threads))
    done = subprocess.run(
        command,
        cwd=bench.lab.folder,
        env={
            **os.environ,
            **process.THREAD_VARIABLES,
            "OMP_NUM_THREADS": str(slot.threads),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- cheats and the audit --------------------------------------------------------------


def measure_refusals(bench, runs, slot, options):
    """Share of cheats refused, by shape and size, and of honest answers."""
    sheet = evaluator.load_evaluation_rows(bench, slot, "validation")
    losses = []
    for run in runs:
        claims, _, _ = evaluator.collect_claims(
            bench, run, slot, sheet, ServingTimes(), lends=False
        )
        losses.append(claims.astype("float64"))
        tell(options, f"claims of seed {run.seed}")
    if len(losses) == 1:  # with --quick: a second model is made up
        rng = np.random.default_rng(2)
        losses.append(np.abs(losses[0] + 0.3 * rng.normal(size=losses[0].shape)))
    return judge_cheats(*losses, sheet, options)


def judge_cheats(honest, champion, sheet, options):
    """The same, given the honest losses of a candidate and of the champion."""
    judge = AuditSimulation(honest, champion, sheet, audit.calibrate_far_nats(0.0))
    scored = sheet.scored_mask
    found = {"audits": judge.count}
    found["models_differ_nats"] = float((honest - champion)[scored].std())
    shapes = {}
    for size in (0.003, 0.001):
        shares = {
            name: judge.estimate_refused(cheat, options.draws // 10)[0]
            for name, cheat in iter_cheats(honest, sheet, size)
        }
        worst = min(shares, key=shares.get)
        key = f"refused_{size:.3f}".replace("0.", "")
        cheat = dict(iter_cheats(honest, sheet, size))[worst]
        found[key], found[f"{key}_low"], _ = judge.estimate_refused(
            cheat, options.draws
        )
        found[f"{key}_worst"], found[f"{key}_shapes"] = worst, len(shares)
        shapes[key] = shares
        tell(options, {key: found[key], "worst": worst})
    many = 5 * options.draws
    share, _, high = judge.estimate_refused(honest, many)
    found["refused_honest"], found["refused_honest_high"] = share, high
    noisy = judge.estimate_refused(honest, many, noise=HONEST_SD_NATS)
    found["refused_honest_bf16"], _, found["refused_honest_bf16_high"] = noisy
    informed = cheat_below_reference(honest, champion, sheet, 0.003)
    found["refused_003_knowing_the_champion"] = judge.estimate_refused(
        informed, options.draws
    )[0]
    return {**found, "shapes": shapes}


class AuditSimulation:
    """The real audit's arithmetic over arrays of losses."""

    def __init__(self, truth, champion, sheet, far_nats):
        self.truth, self.champion = truth, champion
        self.sheet, self.far_nats = sheet, far_nats
        self.count = audit.compute_sample_size(len(truth), "cpu")
        self.rng = np.random.default_rng(1)

    def estimate_refused(self, claims, draws, noise=1e-6):
        """(share refused, 95 % low, 95 % high) over many draws of positions."""
        scored = self.sheet.scored_mask
        lots = audit.StratifiedSampler(
            audit.compute_draw_probabilities(claims, scored, self.champion), self.count
        )
        off = (self.truth - claims).ravel()
        total, size = int(scored.sum()), self.sheet.text_bytes
        refused = 0
        for _ in range(draws):
            drawn = lots.draw_positions(self.rng)
            seen = off[drawn.positions] + noise * self.rng.normal(
                size=len(drawn.positions)
            )
            found = audit.estimate_correction(drawn, seen, total, size, self.far_nats)
            refused += audit.find_objection(found) is not None
        return (refused / draws, *wilson(refused, draws))


def nats_of(size, sheet):
    """A gain in bits per byte, in nats over the whole text."""
    return size * math.log(2) * sheet.text_bytes


def iter_cheats(honest, sheet, size):
    """Yield (name, claims) for every shape of a cheat of this size.

    All tokens by a hair; many by just less than counts as far; and tokens of one kind,
    by how much they cost the model, each lowered by one amount: the worst first, or
    drawn blindly from a band.
    """
    nats = nats_of(size, sheet)
    flat = np.where(sheet.scored_mask, honest, 0.0).ravel()
    yield "a hair off all", honest - sheet.scored_mask * nats / sheet.scored_mask.sum()
    order = np.random.default_rng(5).permutation(np.flatnonzero(sheet.scored_mask))
    just = 0.9 * audit.FAR_NATS_CALIBRATED
    yield "many, just under far", lower_losses(honest, order, by(just), nats)
    kinds = {"the worst": np.argsort(-flat)}
    for low, high in BANDS:
        inside = (flat[order] >= low) & (flat[order] < high)
        kinds[f"of {low} to {high} nats"] = order[inside]
    for kind, places in kinds.items():
        for name, amount in AMOUNTS.items():
            if amount(flat[places]).sum() > nats:
                yield f"{kind}: {name}", lower_losses(honest, places, amount, nats)


def by(nats):
    """A function that lowers losses by this much, at most to zero."""
    return lambda loss: np.minimum(loss, nats)


BANDS = ((0, 99), (1, 2), (2, 4), (4, 6), (6, 8), (8, 99))
AMOUNTS = {
    "0.45 nats": by(0.45),  # a single difference of this size is tolerated
    "0.6 nats": by(0.6),
    "1 nat": by(1),
    "2 nats": by(2),
    "3 nats": by(3),
    "5 nats": by(5),
    "half": lambda loss: loss / 2,
    "all": lambda loss: loss,
}


def lower_losses(honest, order, amount, nats):
    """Lower losses in this order, each by `amount`, until `nats` are gained."""
    flat = honest.ravel().copy()
    steps = amount(flat[order])
    upto = int(np.searchsorted(np.cumsum(steps), nats)) + 1
    flat[order[:upto]] -= steps[:upto]
    return flat.reshape(honest.shape)


def cheat_below_reference(honest, champion, sheet, size):
    """A cheat that knows the champion's losses and lowers none below them."""
    room = np.where(sheet.scored_mask, np.maximum(0.0, honest - champion), 0.0).ravel()
    order = np.argsort(-room)
    flat = honest.ravel().copy()
    upto = int(np.searchsorted(np.cumsum(room[order]), nats_of(size, sheet))) + 1
    flat[order[:upto]] -= room[order[:upto]]
    return flat.reshape(honest.shape)


def wilson(hits, count):
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    main()
