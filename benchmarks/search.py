"""Compare proposers on simulated landscapes: search, random, a scripted coder, bandit.

    python benchmarks/search.py --seeds 20 --json     (about 20 minutes on two cores)

Sessions under the greedy policy, with noise on every score, on three landscapes:

night         fitted to a public session of 125 experiments on one H100: a few constants
              hold most of the gain, the rest little; a third of the gain lies in
              numbers that are no named constants yet; one run's noise is 0.0005
infeasible    30 constants, most of which do nothing, and a corner where runs fail
interactions  30 constants whose best values depend on each other in pairs

Proposers: `search`; `random`, one constant anywhere in its range; `scripted`, a coder
that adds a helpful line in a known share of cases and a harmful one otherwise;
`hybrid`, the bandit over search and scripted (`--rule ucb` for the other bandit).

Reported: the true gain of the champion as a share of all there is to gain, averaged
over experiments 30 to the end, mean over seeds; and paired differences with the lower
end of their 95 % interval (normal, over seeds). The difference on one landscape moves
by 0.03 from one set of 20 seeds to another: judge it on 60 (`--seeds 60`, an hour).

JSON keys:
  quick                            whether --quick was given: then no number counts
  *_random                         share of the gain by landscape; *_search, *_scripted
  *_search                         and *_hybrid likewise
  *_scripted
  *_hybrid
  *_hybrid_over_*                  difference from the better arm, by landscape
  *_hybrid_over_best_low           lower end of its interval
  search_over_random               difference over all landscapes
  search_over_random_low           lower end of its interval
  hybrid_over_best_arm             difference over all landscapes
  hybrid_over_best_arm_low         lower end of its interval
  *_seconds                        median time of one proposal, by proposer
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.experiment import Proposal
from autoresearch.git import compute_blob_id
from autoresearch.lab import (
    constants,
    constraints,
)
from autoresearch.proposers.bandit import Bandit
from autoresearch.proposers.search import Search, round_value, sample_value
from tests.test_search import Bench

FIRST_COUNTED = 30  # the first experiment that counts
QUALITY = 0.15  # share of a coder's ideas that help, as in public sessions
LANDSCAPES = ("night", "infeasible", "interactions")
# Gain of the public session by constant, in bits per byte.
NAMED = {
    "TOTAL_BATCH": 0.0119,
    "DEPTH": 0.0043,
    "EMBEDDING_LR": 0.0033,
    "HEAD_LR": 0.0010,
    "WARMDOWN": 0.0006,
    "MATRIX_LR": 0.0005,
    "DECAY": 0.0004,
    **{f"KNOB_{n}": 0.00005 for n in range(7)},
}
UNNAMED = {
    "ROPE_BASE": 0.0012,
    "INIT_SCALE": 0.0010,
    "VALUE_DECAY": 0.0016,
    "X0_INIT": 0.0008,
    "HEAD_DECAY": 0.0006,
    "EMBEDDING_DECAY": 0.0004,
    "MOMENTUM_RAMP": 0.0003,
    "SHORT_DIVISOR": 0.0003,
}
NAMES = ["MATRIX_LR", "EMBED_LR", "HEAD_LR", "BATCH", "WARMDOWN", "DECAY"]
NAMES += [f"KNOB_{n}" for n in range(24)]


@dataclass
class Landscape:
    """A known true score, and what a coder could add to the file."""

    source: str
    pull: dict  # name -> what being off by one unit of log costs
    best: dict
    start: dict
    ideas: list  # (lines that help, name of what they add or "")
    noise: float
    pairs: tuple = ()
    corner: tuple = ()  # names that together must not exceed their limit

    def true(self, values):
        """The score without noise; lower is better."""
        off = {n: math.log(self.at(n, values) / self.best[n]) for n in self.pull}
        total = 1 + sum(self.pull[n] * off[n] ** 2 for n in self.pull)
        for one, other in self.pairs:
            both = math.sqrt(self.pull[one] * self.pull[other])
            total += 1.6 * both * off[one] * off[other]
        for name, value in values.items():
            if name.startswith("IDEA_"):
                total -= value / 1e6
            elif name.startswith("HARM_"):
                total += value / 1e6
        return total

    def at(self, name, values):
        return max(1e-9, float(values.get(name, self.start[name])))

    def fails(self, values):
        """Whether a run would end out of memory."""
        over = sum(math.log(self.at(n, values) / self.start[n]) for n in self.corner)
        return bool(self.corner) and over > 1.2

    @property
    def all_gain(self):
        """What there is to gain: every constant at its best, every idea taken."""
        ideas = sum(int(line.split("=")[1]) for line, name in self.ideas if not name)
        return self.true({**self.start}) - 1 + ideas / 1e6


def make_night_landscape(seed):
    rng = random.Random(seed)
    start = {name: 10 ** rng.uniform(-3, 0) for name in (*NAMED, *UNNAMED)}
    best, pull = {}, {}
    for name, gain in (NAMED | UNNAMED).items():
        off = rng.choice((-1, 1)) * rng.uniform(0.4, 1.4)
        best[name] = start[name] * math.exp(off)
        pull[name] = gain / off**2
    source = "".join(f"{n} = {start[n]:.3g}\n" for n in NAMED)
    ideas = [(f"{n} = {best[n] * rng.uniform(0.75, 1.33):.3g}", n) for n in UNNAMED]
    rng.shuffle(ideas)
    return Landscape(source, pull, best, start, ideas, 0.0005)


def make_wide_landscape(seed, *, pairs=False, corner=False):
    rng = random.Random(seed)
    start = {name: 10 ** rng.uniform(-3, 0) for name in NAMES}
    best = {n: v * math.exp(rng.uniform(-1.4, 1.4)) for n, v in start.items()}
    pull = {
        n: 0.01 * rng.random() ** 3 * (3 if i < 6 else 1) for i, n in enumerate(NAMES)
    }
    source = "".join(f"{n} = {v:.3g}\n" for n, v in start.items())
    worth = sum(pull[n] * math.log(start[n] / best[n]) ** 2 for n in NAMES)
    ideas = [(f"IDEA_{k} = {int(4e5 * worth * 0.6**k)}", "") for k in range(8)]
    couples = tuple((NAMES[k], NAMES[k + 1]) for k in (0, 2, 4)) if pairs else ()
    names = ("BATCH", "EMBED_LR", "MATRIX_LR") if corner else ()
    return Landscape(source, pull, best, start, ideas, 0.0003, couples, names)


def make_landscape(name, seed):
    if name == "night":
        return make_night_landscape(seed)
    return make_wide_landscape(
        seed, pairs=name == "interactions", corner=name == "infeasible"
    )


class Random:
    """Any constant, anywhere in its range."""

    name, exhausted = "random", False

    def __init__(self, seed):
        self._rng = random.Random(seed)

    def propose(self, ledger):
        champion = ledger.champion
        source = ledger.load_source(champion.blob)
        knob = self._rng.choice(constants.parse_constants(source))
        text = constants.replace_constants(
            source, {knob.name: round_value(knob, sample_value(knob, self._rng))}
        )
        return Proposal(None, knob.name, text, champion.blob, "random")


class Scripted:
    """A coder of known quality: adds a helpful line, or a harmful one."""

    name, exhausted = "scripted", False

    def __init__(self, ideas, seed):
        self._ideas, self._rng, self._count = list(ideas), random.Random(seed), 0

    def propose(self, ledger):
        champion = ledger.champion
        source = ledger.load_source(champion.blob)
        self._count += 1
        left = [(line, n) for line, n in self._ideas if line.split()[0] not in source]
        if left and self._rng.random() < QUALITY:
            line = left[0][0]
        else:
            line = f"HARM_{self._count} = {int(self._rng.expovariate(1 / 3000)) + 100}"
        text = source + line + "  # fixed\n" * line.startswith(("HARM", "IDEA"))
        text = text if text.endswith("\n") else text + "\n"
        return Proposal(None, line, text, champion.blob, self.name)


def make_proposer(name, field, seed, rule):
    if name == "random":
        return Random(seed)
    if name == "search":
        return Search(seed=seed)
    if name == "scripted":
        return Scripted(field.ideas, seed)
    return Bandit([Search(seed=seed), Scripted(field.ideas, seed)], seed, rule)


def run_session(job):
    """(mean share of the gain from the first counted on, seconds per proposal)."""
    where, seed, who, rule, count, first_counted = job
    field = make_landscape(where, seed)
    noise = random.Random(seed + 1)
    first = field.true(field.start)

    def noisy(values):
        return field.true(values) + noise.gauss(0, field.noise)

    shares, begun = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "l.db", noisy, field.source)
        bench.ledger.db.execute("pragma synchronous = off")
        asked = make_proposer(who, field, seed, rule)
        for number in range(count):
            proposal = asked.propose(bench.ledger)
            code = constraints.fingerprint_code(proposal.source)
            proposal = bench.ledger.admit_proposal(
                proposal, compute_blob_id(proposal.source), code
            )
            values = constants.constant_values(proposal.source)
            bench.decide(proposal, None, bench.ledger.champion, field.fails(values))
            if number >= first_counted:
                blob = bench.ledger.champion.blob
                found = field.true(
                    constants.constant_values(bench.ledger.load_source(blob))
                )
                shares.append((first - found) / field.all_gain)
    return statistics.fmean(shares), (time.perf_counter() - begun) / count


def compare_pairs(ones, others):
    """(mean difference, lower end of its 95 % interval)."""
    apart = [one - other for one, other in zip(ones, others, strict=True)]
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    mean = statistics.fmean(apart)
    return round(mean, 4), round(mean - 1.96 * error, 4)


def summarize(shares, seconds):
    """The numbers that are reported."""
    found = {}
    over_random, over_best = [], []
    for where in LANDSCAPES:
        here = {who: shares[where, who] for who in WHO}
        for who in WHO:
            found[f"{where}_{who}"] = round(statistics.fmean(here[who]), 3)
        best = max(("search", "scripted"), key=lambda w: statistics.fmean(here[w]))
        mean, low = compare_pairs(here["hybrid"], here[best])
        found[f"{where}_hybrid_over_{best}"] = mean
        found[f"{where}_hybrid_over_best_low"] = low
        pairs = list(zip(here["search"], here["random"], strict=True))
        over_random += [a - b for a, b in pairs]
        pairs = list(zip(here["hybrid"], here[best], strict=True))
        over_best += [a - b for a, b in pairs]
    zeros = [0.0] * len(over_best)
    mean, low = compare_pairs(over_random, zeros)
    found["search_over_random"], found["search_over_random_low"] = mean, low
    mean, low = compare_pairs(over_best, zeros)
    found["hybrid_over_best_arm"], found["hybrid_over_best_arm_low"] = mean, low
    for who in WHO:
        found[f"{who}_seconds"] = round(statistics.median(seconds[who]), 4)
    return found


WHO = ("random", "search", "scripted", "hybrid")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--proposals", type=int, default=100)
    parser.add_argument("--rule", choices=("thompson", "ucb"), default="thompson")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 5 proposals")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.proposals = 2, 5
    first = min(FIRST_COUNTED, options.proposals // 2)
    jobs = [
        (where, seed, who, options.rule, options.proposals, first)
        for where in LANDSCAPES
        for who in WHO
        for seed in range(options.seeds)
    ]
    shares = {(where, who): [] for where in LANDSCAPES for who in WHO}
    seconds = {who: [] for who in WHO}
    with ProcessPoolExecutor(options.workers) as pool:
        for job, (share, took) in zip(jobs, pool.map(run_session, jobs), strict=True):
            shares[job[0], job[2]].append(share)
            seconds[job[2]].append(took)
    found = {"quick": options.quick, **summarize(shares, seconds)}
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<34} {value}")


if __name__ == "__main__":
    main()
