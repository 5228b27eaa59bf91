"""Kill `autoresearch run` repeatedly with SIGKILL and check that nothing is lost.

    python benchmarks/kill.py --kills 200 --json      (about 6 minutes)

Each round starts `autoresearch run` on lab `line`, kills it after a random time, and
starts it again. At the end one session decides what is left, and the records are
compared: every queued proposal must have exactly one verdict; ledger, refs, branch and
results.tsv must agree; no process and no run folder may be left. The exit code is 1
unless all of this holds.

JSON keys:
  quick                            whether --quick was given
  kills                            sessions that were killed
  lost                             proposals without a verdict
  doubled                          proposals with more than one
  unclean_restarts                 starts that printed an error
  disagreements                    what differs between ledger, git and results.tsv
  decided_under_fire               verdicts made in sessions that were killed
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.git import Repository
from autoresearch.records import results_tsv
from autoresearch.records.ledger import Ledger
from tests import nights


def queue_proposals(lab, count):
    """Queue proposals of which some win, some lose, some fail and some are refused."""
    source = lab.read_file("train.py")
    rng = random.Random(1)
    for number in range(count):
        rate = 0.01 * 1.02 ** (number + 1)
        text = source.replace("LEARNING_RATE = 0.01", f"LEARNING_RATE = {rate:.6f}")
        if number % 7 == 3:
            text = source.replace("points = json", "1 / 0\npoints = json")
            text = text.replace("LEARNING_RATE = 0.01", f"LEARNING_RATE = {rate:.6f}")
        if number % 11 == 5:
            text = "def ("
        if number % 5 == 4:
            text = source.replace("MOMENTUM = 0.5", f"MOMENTUM = {rng.random():.6f}")
        path = lab.state_folder / "proposal.py"
        path.write_text(text)
        done = nights.command(lab, "try", str(path), f"proposal {number + 1}")
        assert done.returncode == 0, done.stderr


def survive(lab, kills, longest_seconds, rng):
    """Run and kill; (round, last line) of every start that printed to stderr."""
    unclean = []
    for kill in range(kills):
        night = subprocess.Popen(
            (*nights.AUTORESEARCH, "run", "--proposer", "mailbox"),
            cwd=lab.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(rng.uniform(0.05, longest_seconds))
        night.kill()
        _, said = night.communicate()
        if said.strip():
            unclean.append((kill, said.strip().splitlines()[-1]))
        print(f"\r{kill + 1}/{kills} kills", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return unclean


def finish(lab, count):
    """Let one session decide whatever is left."""
    night = nights.start(lab, "run", "--proposer", "mailbox")
    while (
        lab.find_lock_holder() is None
        or len(Ledger(lab.ledger_path).load_rows()) < count + 1
    ):
        time.sleep(0.2)
        assert night.poll() is None, night.stdout.read()
    done = nights.command(lab, "stop")
    assert done.returncode == 0, done.stderr
    night.communicate(timeout=60)


def drop_intervals(table):
    """The rows without their intervals, which are only filled in at a start."""
    header = results_tsv.format_header("mse").split()
    bounds = [header.index(name) for name in ("delta_low", "delta_high")]
    rows = (line.split("\t") for line in table.splitlines())
    return [[c for n, c in enumerate(row) if n not in bounds] for row in rows]


def audit(lab, count):
    """What is wrong with the records: (lost, doubled, disagreements)."""
    ledger, repository = Ledger(lab.ledger_path), Repository(lab.folder)
    rows = list(ledger.load_rows())
    numbers = [row.number for row in rows]
    lost = sorted(set(range(count + 1)) - set(numbers))
    doubled = sorted({n for n in numbers if numbers.count(n) > 1})
    wrong = []
    refs = {number: commit for number, commit, _ in repository.list_verdict_commits()}
    ran = {row.number: row.commit for row in rows if row.commit}
    if refs != ran:
        wrong.append(f"refs and ledger differ: {set(refs.items()) ^ set(ran.items())}")
    branch = repository.run_git("log", "--format=%H", "--reverse").splitlines()
    kept = [row.commit for row in rows if row.decision == "keep"]
    if branch[1:] != kept:
        wrong.append(f"the branch has {len(branch) - 1} keeps, the ledger {len(kept)}")
    if repository.run_git("status", "--porcelain"):
        wrong.append(
            "the working tree is dirty: " + repository.run_git("status", "--porcelain")
        )
    table = results_tsv.format_header("mse") + "".join(
        map(results_tsv.format_row, results_tsv.drop_ledger_only(rows))
    )
    if drop_intervals(lab.results_path.read_text()) != drop_intervals(table):
        wrong.append("results.tsv is not what the ledger says")
    if nights.guests_of(lab):
        wrong.append("processes are left")
    if list((lab.state_folder / "runs").glob("*")):
        wrong.append("run folders are left")
    return lost, doubled, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--proposals", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest-seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="3 kills")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.proposals, options.longest_seconds = 3, 3, 1.0
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-kill-"))
    lab = nights.line_lab(folder / "lab")
    nights.run(lab)
    queue_proposals(lab, options.proposals)
    rng = random.Random(options.seed)
    unclean = survive(lab, options.kills, options.longest_seconds, rng)
    decided = len(Ledger(lab.ledger_path).load_rows())
    finish(lab, options.proposals)
    lost, doubled, wrong = audit(lab, options.proposals)
    found = {
        "quick": options.quick,
        "kills": options.kills,
        "lost": len(lost),
        "doubled": len(doubled),
        "unclean_restarts": len(unclean),
        "disagreements": wrong,
        "decided_under_fire": decided - 1,
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value}")
        for kill, words in unclean[:5]:
            print(f"restart {kill}: {words}")
    shutil.rmtree(folder)
    raise SystemExit(bool(lost or doubled or wrong or unclean))


if __name__ == "__main__":
    main()
