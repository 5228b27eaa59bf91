"""Is the optimiser better than changing one constant at random? On made-up landscapes.

    python benchmarks/search.py --seeds 10 --json

Thirty constants, most of which do nothing; the rest pull the score from an optimum a
few factors away, with noise on every score. A hundred proposals each, kept when they
score better, as a greedy night does. Reported: the true gain of the last champion as a
share of all there is to gain, mean over seeds, and seconds per proposal at the end.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch import constants  # noqa: E402
from autoresearch.experiment import Proposal  # noqa: E402
from autoresearch.proposers.search import Search, drawn, tidy  # noqa: E402
from tests.test_search import Bench  # noqa: E402

NAMES = ["MATRIX_LR", "EMBED_LR", "HEAD_LR", "BATCH", "WARMDOWN", "DECAY"]
NAMES += [f"KNOB_{n}" for n in range(24)]


class Random:
    """Any constant, anywhere in its range."""

    def __init__(self, seed):
        self._rng = random.Random(seed)

    def propose(self, ledger):
        champion = ledger.champion
        source = ledger.source(champion.blob)
        knob = self._rng.choice(constants.read(source))
        text = constants.replace(
            source, {knob.name: tidy(knob, drawn(knob, self._rng))}
        )
        return Proposal(None, knob.name, text, champion.blob, "random")


def landscape(seed):
    """(source, true score of constants, score with noise, all there is to gain)."""
    rng = random.Random(seed)
    starts = {name: 10 ** rng.uniform(-3, 0) for name in NAMES}
    source = "".join(f"{n} = {v:.3g}\n" for n, v in starts.items())
    best = {n: v * math.exp(rng.uniform(-1.4, 1.4)) for n, v in starts.items()}
    pull = {
        n: 0.01 * rng.random() ** 3 * (3 if i < 6 else 1) for i, n in enumerate(NAMES)
    }

    def true(values):
        return 1 + sum(pull[n] * math.log(values[n] / best[n]) ** 2 for n in NAMES)

    noise = random.Random(seed + 1)
    return source, true, lambda values: true(values) + noise.gauss(0, 0.0003)


def night(seed, proposer, count):
    """(share of the gain that was found, seconds of the last proposals)."""
    source, true, noisy = landscape(seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "l.db", noisy, source)
        bench.night(proposer, count - 10)
        begun = time.perf_counter()
        bench.night(proposer, 10)
        seconds = (time.perf_counter() - begun) / 10
        found = constants.values_of(bench.ledger.source(bench.ledger.champion.blob))
    first = true(constants.values_of(source))
    return (first - true(found)) / (first - 1), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--proposals", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {"search": [], "random": []}
    for seed in range(options.seeds):
        results["search"].append(night(seed, Search(seed=seed), options.proposals))
        results["random"].append(night(seed, Random(seed), options.proposals))
    found = {}
    for name, nights in results.items():
        shares = [share for share, _ in nights]
        found[f"{name}_share"] = round(statistics.fmean(shares), 3)
        found[f"{name}_sd"] = round(statistics.stdev(shares), 3)
        found[f"{name}_seconds"] = round(statistics.median(s for _, s in nights), 4)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
