"""Fit effect sizes and noise to a recorded greedy session.

    python benchmarks/fit.py --draws 1500 --json      (about 5 seconds)

The target is the late part of the best-known public session (112 experiments after the
first 13): 12 kept, a claimed sum of 0.0034, a third of the discards within 0.0005 of
the champion and 45 % within 0.0007. Parameters are drawn at random, sessions simulated
with them, and the draws that come closest are shown (approximate Bayesian computation,
Beaumont et al. 2002). Read the result as a range: four numbers do not identify five
parameters. Sizes are in units of 1e-4 bits per byte.

JSON keys:
  quick                            whether --quick was given: then no number counts
  draws                            parameter sets that were tried
  closest                          the 12 closest, each with its distance `off`, the
                                   five parameters and the four simulated numbers
"""

import argparse
import json
import random
from statistics import fmean

EXPERIMENTS = 112
# (what it is, its value, how far off still counts as close); gains in units of 1e-4
TARGETS = (
    ("keeps", 12, 3),
    ("claimed sum", 34, 8),
    ("discards within 5", 0.34, 0.05),
    ("discards within 7", 0.45, 0.05),
)


PARAMETERS = ("sd", "helps", "help_size", "nothing", "harm_size")


def simulate_session(rng, sd, helps, help_size, nothing, harm_size):
    """The four numbers of one greedy session that begins with a lucky champion."""
    level, claimed, lost = 0.0, [], []
    champion = max(rng.gauss(0, sd) for _ in range(7))
    for _ in range(EXPERIMENTS):
        kind, effect = rng.random(), 0.0
        if kind < helps:
            effect = rng.expovariate(1 / help_size)
        elif kind > helps + nothing:
            effect = -rng.expovariate(1 / harm_size)
        score = level + effect + rng.gauss(0, sd)
        if score > champion:
            claimed.append(score - champion)
            champion, level = score, level + effect
        else:
            lost.append(champion - score)
    near = [fmean(gap < reach for gap in lost) for reach in (5, 7)]
    return len(claimed), sum(claimed), *near


def draw_parameters(rng):
    """sd, share and size of what helps, share that does nothing, size of harm."""
    sd, helps, nothing = (
        rng.uniform(2.5, 7),
        rng.uniform(0.02, 0.4),
        rng.uniform(0, 0.6),
    )
    return sd, helps, 10 ** rng.uniform(0, 1.2), nothing, 10 ** rng.uniform(0.3, 1.7)


def find_closest(draws, seed):
    """(distance, parameters, simulated numbers) of every draw, closest first."""
    rng, found = random.Random(seed), []
    for _ in range(draws):
        parameters = draw_parameters(rng)
        sessions = [simulate_session(rng, *parameters) for _ in range(6)]
        means = [fmean(column) for column in zip(*sessions, strict=True)]
        off = sum(
            ((mean - value) / scale) ** 2
            for mean, (_, value, scale) in zip(means, TARGETS, strict=True)
        )
        found.append((off, parameters, means))
    return sorted(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20 draws")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.draws = 20
    names = [*PARAMETERS, *(name for name, _, _ in TARGETS)]
    closest = [
        {"off": round(off, 2)}
        | {n: round(v, 3) for n, v in zip(names, (*made, *means), strict=True)}
        for off, made, means in find_closest(options.draws, options.seed)[:12]
    ]
    found = {"quick": options.quick, "draws": options.draws, "closest": closest}
    if options.json:
        print(json.dumps(found))
        return
    print("  ".join(closest[0]))
    for row in closest:
        print("  ".join(f"{value:>{len(name)}}" for name, value in row.items()))


if __name__ == "__main__":
    main()
