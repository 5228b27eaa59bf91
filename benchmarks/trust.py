"""What the cage costs, whether it kills in time, and which cheats the audit refuses.

    python benchmarks/trust.py --json

Four parts, each printed as it is done (about 15 minutes on two cores; `--part` runs
one of them alone):

cage     time from starting a guest at the best level here to its first word, beyond a
         bare interpreter that imports the same and says the same; alternating
kill     100 hostile guests (daemons, deaf ones, forkers, spinners) at a short wall: how
         late the kill was sent, when everything was dead, what was left 100 ms later
eval     claim and audit of a million tokens against the same sum in one process; the
         start-up of the two guests is shown apart
audit    real losses of two trained models; cheats of 0.003 and 0.001 bits per byte in
         several shapes, and honest answers, through the real `audit`, many times

`refused_*` are the worst shape's share, with the 95 % bound (Wilson) that counts
against us beside it.
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
    "from autoresearch.sandbox.restrictions import Fence"
)
CAGED = (
    f"{IMPORTS}\nif sys.argv[2]: Fence.of(sys.argv[2]).close()\n"
    "os.write(int(sys.argv[1]), b'\\x02\\0\\0\\0{}')"
)
BARE = f"{IMPORTS}\nos.write(1, b'x')"

HOSTILE = (
    # a family of daemons that hear no signal
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
    # forks and exits all the time
    "import os\nwhile True:\n    if os.fork(): os._exit(0)\n",
    # threads that spin, and a child that does too
    "import os, threading\n"
    "os.fork()\n"
    "def spin():\n"
    "    while True: pass\n"
    "for _ in range(4): threading.Thread(target=spin).start()\n",
    # floods the channel and the log
    "import os, sys\n"
    "fd = int(sys.argv[1])\n"
    "os.fork()\n"
    "while True:\n"
    "    os.write(1, b'x' * 4096)\n"
    "    os.write(fd, b'\\x02\\0\\0\\0{}' * 50)\n",
    # stops itself, with stopped children
    "import os, signal, time\n"
    "for _ in range(5):\n"
    "    if os.fork() == 0:\n"
    "        os.kill(os.getpid(), signal.SIGSTOP)\n"
    "os.kill(os.getpid(), signal.SIGSTOP)\n",
)
HONEST_SD_NATS = 0.003  # of bf16 between two kernels; CPUs answer the same to 1e-6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=("cage", "kill", "eval", "audit"))
    parser.add_argument("--repeats", type=int, default=3, help="of eval; default 3")
    parser.add_argument(
        "--draws", type=int, default=4000, help="of audit; default 4000"
    )
    options = parser.parse_args()
    found = {}
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
            found.update(cage_cost(empty, walls))
            tell(options, found)
        if "kill" in parts:
            found.update(kills(empty, walls))
            tell(options, found)
        if {"eval", "audit"} & set(parts):
            bench, runs = trained(folder / "lab", walls, slot, options)
            if "eval" in parts:
                found.update(evaluation(bench, runs[0], slot, options.repeats))
                tell(options, found)
            if "audit" in parts:
                found.update(refusals(bench, runs, slot, options))
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def tell(options, words):
    if not options.json:
        print(words, file=sys.stderr, flush=True)


# -- what the cage costs, and whether it kills in time ---------------------------------


def guest_of(lab, walls, code):
    """A guest that runs this code, in a folder of its own."""
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


def cage_cost(lab, walls, repeats=40):
    """Start of a caged guest beyond a bare interpreter, in milliseconds."""
    caged, bare = [], []
    for _ in range(repeats):
        begun = time.monotonic()
        with guest_of(lab, walls, CAGED) as guest:
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


def kills(lab, walls, count=100):
    """Hostile guests at a wall of 0.4 s: how late the kill, what is left 100 ms on.

    The overrun is from the wall until the harness kills: nothing that a guest says
    after the wall is heard, whatever it still computes. `left` is counted 100 ms after
    the wall, whether or not the kill has returned by then.
    """
    late, gone, left = [], [], 0
    for turn in range(count):
        guest = guest_of(lab, walls, HOSTILE[turn % len(HOSTILE)])
        deadline = time.monotonic() + 0.4
        listening = heard(guest, deadline - 0.15)
        inside = namespaces_below(guest._process.pid)  # slow, so before the wall
        if listening and heard(guest, deadline):
            late.append(time.monotonic() - deadline)
        sent = time.monotonic()  # a flood is cut off before the wall
        killing = threading.Thread(target=timed_kill, args=(guest, gone))
        killing.start()
        time.sleep(max(0.0, max(sent, deadline) + 0.1 - time.monotonic()))
        left += len(alive_in(inside))
        killing.join()
    return {
        "overrun_ms": 1000 * max(late),
        "overrun_ms_median": 1000 * statistics.median(late),
        "overruns": len(late),
        "gone_ms": 1000 * statistics.median(gone),
        "gone_ms_worst": 1000 * max(gone),
        "left": left,
    }


def timed_kill(guest, gone):
    """Kill a guest, and note how long it took until nothing of it was left."""
    sent = time.monotonic()
    guest.kill()
    gone.append(time.monotonic() - sent)


def heard(guest, deadline):
    """Listen to a guest until then; whether it is still worth it."""
    try:
        while True:
            guest.receive(deadline)
    except TimeoutError:
        return True
    except (ProcessExited, ProtocolError, LimitExceeded):
        return False


def namespaces_below(pid):
    """The pid namespaces, other than ours, of a process's descendants."""
    import psutil

    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{child.pid}/ns/pid"))
    return found - {os.readlink("/proc/self/ns/pid")}


def alive_in(namespaces):
    """Processes that live in one of these pid namespaces."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") in namespaces:
                found.append(name)
    return found


# -- what the evaluation costs ---------------------------------------------------------


def trained(folder, walls, slot, options):
    """Lab gpt with a million validation tokens, and two models trained for 30 s."""
    new.create_lab(folder, "gpt", None, None, "cpu")
    prepare = folder / "prepare.py"
    text = prepare.read_text()
    for name, value in (("VALIDATION", 2_300_000), ("HOLDOUT", 100_000)):
        text = new.replace_literal(text, f"{name}_BYTES", value)
    prepare.write_text(new.replace_literal(text, "MAXIMUM_BYTES", 20_000_000))
    book = Repository(folder)
    book.run_git("add", "-A")
    book.run_git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "larger")
    lab = Lab.find(folder)
    found = apparatus.load_apparatus(lab, book)
    found.prepare_data(lambda stage, done, total: None)
    terms = RunTerms(
        30.0, None, 5.0, 60.0, ResourceLimits(discovery.default_memory_limit_gb())
    )
    bench = Workbench(
        lab, found, terms, StopFlag(), lambda candidate, progress: None, walls
    )
    source = lab.read_file("train.py")
    runs = []
    for seed in (1, 2):
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
torch_model.load(model, state, "cpu")
prepare.text("validation")
begun = time.monotonic()
value = standalone.in_process(prepare, model, "cpu")
print(json.dumps([value, time.monotonic() - begun]))
"""


def evaluation(bench, run, slot, repeats):
    """Claim and audit against one process, alternating; start-up apart."""
    ratios, starts, gaps, seconds = [], [], [], []
    tokens = len(bench.apparatus.text("validation")[0])
    for _ in range(repeats):
        shutil.rmtree(bench.lab.state / "audit", ignore_errors=True)
        again = bench.lab.state / "again"
        shutil.copytree(run.weights.parent, again, dirs_exist_ok=True)
        once = replace(run, weights=again / run.weights.name)
        score = evaluator.score_run(bench, once, device=slot)
        start = (
            2
            * evaluator.locate_calibration(bench, slot).load_calibration().start_seconds
        )
        value, alone = in_one_process(bench, run, slot)
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


def in_one_process(bench, run, slot):
    """(score, seconds) without guests, cages or audits, on as many threads.

    With a guest's settings for threads: such as spin while they wait took ten times as
    long on a busy machine, and the first try of this part was killed in the middle.
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


# -- which cheats the audit refuses ----------------------------------------------------


def refusals(bench, runs, slot, options):
    """Shares of cheats refused, worst shape, and of honest answers."""
    sheet = evaluator.load_evaluation_rows(bench, slot, "validation")
    losses = []
    for run in runs:
        claims, _, _ = evaluator.collect_claims(bench, run, slot, sheet, ServingTimes())
        losses.append(claims.astype("float64"))
        tell(options, f"claims of seed {run.seed}")
    return judged(*losses, sheet, options)


def judged(honest, champion, sheet, options):
    """The same from the honest losses of a candidate and of the champion."""
    judge = Judge(honest, champion, sheet, audit.calibrate_far_nats(0.0))
    scored = sheet.scored
    found = {"audits": judge.count}
    found["models_differ_nats"] = float((honest - champion)[scored].std())
    shapes = {}
    for size in (0.003, 0.001):
        shares = {
            name: judge.refused(cheat, options.draws // 10)[0]
            for name, cheat in cheats(honest, sheet, size)
        }
        worst = min(shares, key=shares.get)
        key = f"refused_{size:.3f}".replace("0.", "")
        cheat = dict(cheats(honest, sheet, size))[worst]
        found[key], found[f"{key}_low"], _ = judge.refused(cheat, options.draws)
        found[f"{key}_worst"], found[f"{key}_shapes"] = worst, len(shares)
        shapes[key] = shares
        tell(options, {key: found[key], "worst": worst})
    many = 5 * options.draws
    share, _, high = judge.refused(honest, many)
    found["refused_honest"], found["refused_honest_high"] = share, high
    noisy = judge.refused(honest, many, noise=HONEST_SD_NATS)
    found["refused_honest_bf16"], _, found["refused_honest_bf16_high"] = noisy
    informed = against_reference(honest, champion, sheet, 0.003)
    found["refused_003_knowing_the_champion"] = judge.refused(informed, options.draws)[
        0
    ]
    return {**found, "shapes": shapes}


class Judge:
    """The real audit's arithmetic over arrays of losses."""

    def __init__(self, truth, champion, sheet, far_nats):
        self.truth, self.champion = truth, champion
        self.sheet, self.far_nats = sheet, far_nats
        self.count = audit.compute_sample_size(len(truth), "cpu")
        self.rng = np.random.default_rng(1)

    def refused(self, claims, draws, noise=1e-6):
        """(share refused, 95 % low, 95 % high) over many draws of positions."""
        scored = self.sheet.scored
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
    """A gain in bits per byte as nats over the whole text."""
    return size * math.log(2) * sheet.text_bytes


def cheats(honest, sheet, size):
    """(name, claims) of every shape of a cheat worth so many bits per byte.

    All tokens by a hair; many by just less than counts as far; and tokens of one kind,
    by how much they cost the model, each lowered by one amount: the worst first, or
    drawn blindly from a band.
    """
    nats = nats_of(size, sheet)
    flat = np.where(sheet.scored, honest, 0.0).ravel()
    yield "a hair off all", honest - sheet.scored * nats / sheet.scored.sum()
    order = np.random.default_rng(5).permutation(np.flatnonzero(sheet.scored))
    just = 0.9 * audit.FAR_NATS_CALIBRATED
    yield "many, just under far", lowered(honest, order, by(just), nats)
    kinds = {"the worst": np.argsort(-flat)}
    for low, high in BANDS:
        inside = (flat[order] >= low) & (flat[order] < high)
        kinds[f"of {low} to {high} nats"] = order[inside]
    for kind, places in kinds.items():
        for name, amount in AMOUNTS.items():
            if amount(flat[places]).sum() > nats:
                yield f"{kind}: {name}", lowered(honest, places, amount, nats)


def by(nats):
    """Lower a loss by so much, as far as there is any."""
    return lambda loss: np.minimum(loss, nats)


BANDS = ((0, 99), (1, 2), (2, 4), (4, 6), (6, 8), (8, 99))
AMOUNTS = {
    "0.45 nats": by(0.45),  # one such difference alone is forgiven
    "0.6 nats": by(0.6),
    "1 nat": by(1),
    "2 nats": by(2),
    "3 nats": by(3),
    "5 nats": by(5),
    "half": lambda loss: loss / 2,
    "all": lambda loss: loss,
}


def lowered(honest, order, amount, nats):
    """Lower losses in this order, each by `amount`, until so many nats are gained."""
    flat = honest.ravel().copy()
    steps = amount(flat[order])
    upto = int(np.searchsorted(np.cumsum(steps), nats)) + 1
    flat[order[:upto]] -= steps[:upto]
    return flat.reshape(honest.shape)


def against_reference(honest, champion, sheet, size):
    """By somebody who knew the champion's loss of every token: only down to it."""
    room = np.where(sheet.scored, np.maximum(0.0, honest - champion), 0.0).ravel()
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
