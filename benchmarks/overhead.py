"""What the harness adds to an experiment, at the 10th and at the 10 000th.

    python benchmarks/overhead.py --json

On lab `line`: median seconds from asking for a proposal to its recorded verdict, less
the training itself; and `autoresearch status` with 10 000 rows beyond the start of an
interpreter. The ledger and refs are filled through the same code that nights use.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.experiment import Candidate, Proposal, Run, Score, Verdict
from autoresearch.git import compute_blob_id
from autoresearch.loop import research
from autoresearch.run import session as nightly
from autoresearch.sandbox.process import StopFlag
from tests import nights


def fill(lab, count):
    """Record discarded experiments until there are `count`, without running them."""
    options = nightly.SessionOptions(proposers=("mailbox",), seed=1)
    with nightly.open_session(lab, options, StopFlag()) as (opened, _):
        books = opened.recorder
        source = lab.read("train.py")
        champion = books.ledger.champion
        for number in range(len(books.ledger.load_rows()), count):
            text = source + f"\nX{number} = {number}\n"
            proposal = books.admit_proposal(
                Proposal(None, f"filler {number}", text, champion.blob, "script:fill")
            )
            books.repository.write_blob(text)
            run = Run(
                Candidate(proposal, compute_blob_id(text)),
                *(1, 0.1, 0.1, 0.01, Path("w"), (("width", 1),), Path("x.log")),
            )
            score = Score(run, champion.values[0] + 1 + number / 1e6, 0.0, 0.1)
            books.record_verdict(Verdict("discard", "filler", (score,), champion))
            if number % 100 == 0:
                print(
                    f"\rfilling {number}/{count}", end="", file=sys.stderr, flush=True
                )
    print(file=sys.stderr)


def experiments(lab, count, first):
    """Seconds of overhead per experiment over `count` real ones."""
    proposals = [nights.rate(1e-5 * (first + n) + 1e-7) for n in range(count)]
    options = nightly.SessionOptions(
        proposers=(nights.script(lab, *proposals),), seed=1
    )
    found = []
    with nightly.open_session(lab, options, StopFlag()) as (opened, _):
        begun = time.perf_counter()
        for row in research(opened):
            took = time.perf_counter() - begun
            assert row.kind is None, row.why
            found.append(took - row.seconds)
            begun = time.perf_counter()
    return found


def status_seconds(lab, repeats):
    """Seconds of `autoresearch status` beyond a bare interpreter, medians."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=20, help="timed at each end")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autoresearch-overhead-"))
    lab = nights.line_lab(folder / "lab")
    nights.run(lab)
    early = experiments(lab, options.experiments, 1)
    fill(lab, options.rows)
    late = experiments(lab, options.experiments, 1000)
    found = {
        "per_experiment_seconds_10": round(statistics.median(early), 4),
        "per_experiment_seconds_10000": round(statistics.median(late), 4),
        "status_seconds_10000": round(status_seconds(lab, 9), 4),
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<30} {value:.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
