"""Which effects and which noise make a greedy night look like a recorded one?

    python benchmarks/fit.py --draws 1500

The late part of the best-known public night (112 experiments after the first 13): 12
kept, a claimed sum of 0.0034, a third of the discards within 0.0005 of the champion and
45 % within 0.0007. Parameters are drawn at random, nights simulated with them, and the
draws whose nights come closest are shown (approximate Bayesian computation). Read it as
a range: the four numbers do not pin the five parameters down.
"""

import argparse
import random
from statistics import fmean

EXPERIMENTS = 112
# (what it is, its value, how far off still counts as close); gains in units of 1e-4
SEEN = (
    ("keeps", 12, 3),
    ("claimed sum", 34, 8),
    ("discards within 5", 0.34, 0.05),
    ("discards within 7", 0.45, 0.05),
)


def night(rng, sd, helps, help_size, nothing, harm_size):
    """The four numbers, of one greedy night that begins with a lucky champion."""
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


def drawn(rng):
    """sd, share and size of what helps, share that does nothing, size of harm."""
    sd, helps, nothing = (
        rng.uniform(2.5, 7),
        rng.uniform(0.02, 0.4),
        rng.uniform(0, 0.6),
    )
    return sd, helps, 10 ** rng.uniform(0, 1.2), nothing, 10 ** rng.uniform(0.3, 1.7)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    rng, found = random.Random(options.seed), []
    for _ in range(options.draws):
        made = drawn(rng)
        told = [
            fmean(c) for c in zip(*(night(rng, *made) for _ in range(6)), strict=True)
        ]
        off = sum(
            ((t - value) / scale) ** 2
            for t, (_, value, scale) in zip(told, SEEN, strict=True)
        )
        found.append((off, made, told))
    found.sort()
    print(
        "  off | sd  helps  by  nothing  harm, in 1e-4 |",
        *(s[0] for s in SEEN),
        sep="  ",
    )
    for off, made, told in found[:12]:
        print(
            f"{off:5.2f} |",
            *(f"{v:6.2f}" for v in made),
            "|",
            *(f"{v:6.2f}" for v in told),
        )


if __name__ == "__main__":
    main()
