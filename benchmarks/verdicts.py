"""False keeps, missed effects, gains and claims of every policy, in simulation.

    python benchmarks/verdicts.py --nights 1000 --json   (about 10 minutes on two cores)

Simulated sessions (`simulation.py`) are decided by the package's own policies. Two
textbook designs that test each candidate alone stand beside them: a group-sequential
test (boundaries by dynamic programming) and an always-valid e-value. Gains are of
sessions of 120 runs, rates of sessions of 100 experiments. Intervals are 95 %, over
sessions; ratios to greedy compare sessions with the same ideas. Runs that close a
session are among its 120; after 100 experiments they come on top, and are counted as
runs. --curve adds the trade-off to choose from.

JSON keys, all but the first of the policy noise-aware:
  quick                            whether --quick was given: then no number counts
  false_keeps_per_night            false keeps in 100 experiments without any effect
  kept_2sd                         share of real effects of 2 sd that were kept
  kept_1sd                         the same for effects of 1 sd
  runs_per_experiment              runs per experiment, the larger of both
  gain_ratio_worst_low             true gain / greedy's: lower bound, worst case
  gain_ratio_low_signal_low        the same where the mean real gain is 2 sd at most
  gain_ratio_seeds_worst_low       the same where most of the noise is the seeds'
  claim_bias                       claimed gain / true gain - 1
  coverage                         share of 95 % intervals that hold the true gain
  early_kill_saved                 share of training time saved by early stopping
  early_kill_false                 share of stopped runs that would have won
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from autoresearch.experiment import Verdict
from autoresearch.policies.noise_aware import NoiseAwarePolicy
from autoresearch.policies.registry import load_policy
from benchmarks import simulation as lab

SD = 0.0005
SDS = (0.0003, 0.0005, 0.001, 0.002)  # measured in different labs
SIGNALS = (0.5, 1.0, 2.0, 4.0, 8.0)  # mean real gain, in sd
LOW_SIGNALS = (0.5, 1.0, 2.0)  # most real gains are below two sd
FITTED = 1.0  # mean real gain late in recorded sessions, in sd
NAMED = ("normal", "heavy", "drift")  # the shapes that the stated goals cover
SHAPES = (*NAMED, "seeds")  # on a CPU most of the noise comes from the seeds
SEED_SHARE = 0.8  # of the variance, in shape "seeds": a CPU with a token budget
INTERACTION = 0.4  # of that, specific to one train.py, as recorded
MAIN = ["greedy", "noise-aware"]
OTHERS = [
    "anneal",
    "islands",
    "group-sequential",
    "e-value",
]  # a quarter of the sessions
RUNS, EXPERIMENTS, SHARE = 120, 100, 0.15
QUICK_RUNS, QUICK_EXPERIMENTS = 16, 10  # the same with --quick


# -- two textbook designs, one candidate at a time -------------------------------------


@dataclass(frozen=True)
class OneByOne:
    """What the two designs share: three baseline runs, fresh seeds, one parent."""

    name: str
    most_runs: int = 6

    def choose_next_run(self, scores, history):
        if history.champion is None:
            return "candidate" if len(scores) < 3 else "nothing"
        if not scores:
            return "candidate"
        if self.settled(scores, history):
            return "nothing"
        few = len(history.champion.values) < 2 * len(scores)
        return "champion" if few else "candidate"

    def settled(self, scores, history):
        """ "keep", "discard", or None: go on. Noise is known to these, a courtesy."""
        champion, runs = history.champion.values, len(scores)
        seen = (fmean(champion) - fmean(s.value for s in scores)) / SD
        if self.name == "group-sequential":
            # Lower and upper bounds on the mean gain in sd after each run, for 6
            # champion runs; value iteration with 40, 25 and 60 runs as the prices of a
            # false keep, a missed effect of one and of two sd.
            low = (0.59, 0.84, 0.94, 1.01, 1.07, 1.23)[runs - 1]
            high = (3.64, 2.36, 1.91, 1.66, 1.47, 1.23)[runs - 1]
            return "keep" if seen >= high else "discard" if seen < low else None
        # The mixture e-value of Robbins (1970): reject at 100, so that by Ville's
        # inequality no stopping rule keeps one of a hundred without effect.
        error = 1 / runs + 1 / len(champion)
        wide = 4.0  # variance of the effects mixed over
        shrink = wide / (wide + error)
        e = math.exp(min(99, 0.5 * seen * seen / error * shrink))
        e *= math.sqrt(1 - shrink)
        if seen > 0 and e >= 100:
            return "keep"
        # Hopeless: an effect of 1.5 sd is ruled out at 5 %.
        lost = seen < 1.5 - 1.645 * math.sqrt(error)
        return "discard" if lost or runs >= self.most_runs else None

    def decide(self, scores, history, change):
        champion = history.champion
        if champion is None:
            return Verdict("keep", "baseline", scores)
        kept = self.settled(scores, history) == "keep"
        return Verdict("keep" if kept else "discard", self.name, scores, champion)

    def find_champion_to_restore(self, history):
        return None

    def choose_closing_run(self, history, left):
        return None

    def choose_parent(self, history, rows):
        return None


def load_any_policy(name):
    if name in ("group-sequential", "e-value"):
        return OneByOne(name)
    if name.startswith("noise-aware "):
        return NoiseAwarePolicy(True, 0.0, promising_z=float(name.split()[1]))
    return load_policy(name, lower_is_better=True, gain_per_20_added_lines=0.0)


# -- sessions --------------------------------------------------------------------------


def shorten_sessions():
    """In each worker, with --quick."""
    global RUNS, EXPERIMENTS
    RUNS, EXPERIMENTS = QUICK_RUNS, QUICK_EXPERIMENTS


def make_noise(sd, shape):
    """Of runs; in shape "seeds" most of it is what a seed adds to every train.py."""
    if shape == "seeds":
        return lab.SimulatedNoise(sd, seed_share=SEED_SHARE, interaction=INTERACTION)
    return lab.SimulatedNoise(sd, shape)


def rates(job):
    """Sessions without effects, or with effects of one size -> what was kept."""
    name, size, shape, first, count = job
    told = []
    for seed in range(first, first + count):
        sd = SDS[seed % len(SDS)] if name not in ("group-sequential", "e-value") else SD
        effects = lab.fixed_effect_sampler(SHARE if size else 0.0, size * sd)
        night = lab.simulate_session(
            load_any_policy(name),
            effects,
            make_noise(sd, shape),
            seed,
            experiments=EXPERIMENTS,
        )
        taken = night.experiments + 1
        claimed = lab.estimate_simulated_gain(night)
        told.append(
            (
                night.false_keeps,
                night.kept,
                night.real,
                night.runs / taken,
                (claimed.gain if claimed else night.claimed) / sd,
            )
        )
    return told


def gains(job):
    """Sessions with a budget of runs -> true gain, claim and its interval, in sd."""
    name, signal, shape, first, count = job
    told = []
    for seed in range(first, first + count):
        night = lab.simulate_session(
            load_any_policy(name),
            lab.spike_and_slab_sampler(SHARE, signal * SD),
            make_noise(SD, shape),
            seed,
            runs=RUNS,
        )
        claimed = lab.estimate_simulated_gain(night)
        if claimed is None:  # greedy runs nothing twice: its claim is a difference
            told.append((night.gain / SD, night.claimed / SD, None))
        else:
            holds = claimed.low <= night.gain <= claimed.high
            holds = holds if night.champions[-1].number else None
            told.append((night.gain / SD, claimed.gain / SD, holds))
    return told


def prune(job):
    """Sessions of learning curves, some of them ended early."""
    first, count = job
    effects = lab.spike_and_slab_sampler(SHARE, FITTED, 0.55, 6.0)
    return [
        lab.simulate_pruning(effects, lab.CurveModel(), seed)
        for seed in range(first, first + count)
    ]


def spread(pool, work, jobs, nights, chunk=50):
    """Simulate every job's sessions, in chunks over the cores -> {job: results}."""
    parts = [(job, first) for job in jobs for first in range(0, nights, chunk)]
    asked = [(*job, first, min(chunk, nights - first)) for job, first in parts]
    found = {job: [] for job in jobs}
    for (job, _), told in zip(parts, pool.map(work, asked, 1), strict=True):
        found[job] += told
    return found


def interval(values):
    """Mean and half a 95 % interval."""
    return fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def ratio(ours, theirs):
    """Ratio of mean gains of paired nights, and half its interval (delta method)."""
    value = fmean(ours) / fmean(theirs)
    rest = [a - value * b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(rest) / math.sqrt(len(rest)) / fmean(theirs)
    return value, 1.96 * error


# -- tables ----------------------------------------------------------------------------


def measure(pool, options, show):
    """Rates in sessions of 100 experiments -> {policy: what --json says of it}."""
    rated = spread(
        pool, rates, [(n, s, "normal") for n in MAIN for s in (0, 1, 2)], options.nights
    )
    odd = [(name, 0, shape) for name in MAIN for shape in SHAPES[1:]]
    rated |= spread(pool, rates, odd, options.nights)
    rest = [(name, size, "normal") for name in OTHERS for size in (0, 1, 2)]
    rated |= spread(pool, rates, rest, options.nights // 4)
    show("100 experiments, 15 % of them real where there are any; ± is 95 %\n")
    show(
        f"{'':20}{'false keeps':>13}{'kept 2 sd':>11}{'1 sd':>7}{'runs/exp':>10}"
        f"{'fake gain, sd':>16}"
    )
    found = {}
    for name in MAIN + OTHERS:
        false, fake = (
            interval([t[k] for t in rated[name, 0, "normal"]]) for k in (0, 4)
        )
        two, one = (compute_kept_share(rated[name, size, "normal"]) for size in (2, 1))
        runs = max(fmean(t[3] for t in rated[name, s, "normal"]) for s in (1, 2))
        found[name] = (false[0], two, one, runs)
        show(
            f"{name:20}{false[0]:6.2f} ± {false[1]:.2f}{two:11.3f}{one:7.3f}"
            f"{runs:10.2f}{fake[0]:9.2f} ± {fake[1]:.2f}"
        )
    for name, _, shape in odd:
        false, fake = (interval([t[k] for t in rated[name, 0, shape]]) for k in (0, 4))
        show(
            f"{name + ' ' + shape:20}{false[0]:6.2f} ± {false[1]:.2f}{'':28}"
            f"{fake[0]:9.2f} ± {fake[1]:.2f}"
        )
    return found


def compute_kept_share(told):
    """The share of real effects that were in the last champion."""
    return sum(t[1] for t in told) / sum(t[2] for t in told)


def grid(pool, options, show):
    """Sessions of 120 runs, by signal and noise -> lower bounds, bias, cover."""
    cells = [(n, s, shape) for n in MAIN for s in SIGNALS for shape in SHAPES]
    told = spread(pool, gains, cells, options.nights)
    cells = [(name, signal, "normal") for name in OTHERS for signal in SIGNALS]
    told |= spread(pool, gains, cells, options.nights // 4)
    head = f"{'':26}" + "".join(f"{signal:>15}" for signal in SIGNALS)
    show("\ntrue gain of 120 runs, as a ratio to greedy's, by mean real gain in sd\n")
    show(head)
    lows = {}
    ours = [("noise-aware", shape) for shape in SHAPES]
    for name, shape in [*ours, *((name, "normal") for name in OTHERS)]:
        line = f"{name + ' ' + shape:26}"
        for signal in SIGNALS:
            gained = [t[0] for t in told[name, signal, shape]]
            greedy = [t[0] for t in told["greedy", signal, shape]][: len(gained)]
            value, half = ratio(gained, greedy)
            line += f"{value:8.3f} ±{half:.3f}"
            lows[name, signal, shape] = value - half
        show(line)
    show(f"\nclaimed gain of the champion against its true gain\n\n{head}")
    bias, cover = {}, {}
    for name, shape in [("greedy", "normal"), *ours]:
        line, held = f"{name + ' ' + shape:26}", f"{'  its interval holds':26}"
        for signal in SIGNALS:
            cell = told[name, signal, shape]
            off = sum(t[1] for t in cell) / sum(t[0] for t in cell) - 1
            bias[name, signal, shape] = off
            line += f"{off:+15.3f}"
            holds = [t[2] for t in cell if t[2] is not None]
            if holds:
                cover[name, signal, shape] = fmean(holds)
                held += f"{fmean(holds):15.3f}"
        show(line if name == "greedy" else f"{line}\n{held}")
    return lows, bias, cover


def early(pool, options, show):
    """What ending hopeless runs early saves and costs."""
    asked = [(first, 10) for first in range(0, options.nights // 2, 10)]
    nights = [night for part in pool.map(prune, asked, 1) for night in part]
    saved, half = interval([n.saved for n in nights])
    count, false = sum(n.killed for n in nights), sum(n.false for n in nights)
    spared = [won for n in nights for won in n.spared_won]
    z = 1.96 * math.sqrt(false / count * (1 - false / count) / count)
    estimate = fmean(spared)
    width = 1.96 * math.sqrt(max(estimate, 1 / len(spared)) / len(spared))
    show(
        f"\nearly kill: {saved:.3f} ± {half:.3f} of the training time saved; "
        f"false kills {false / count:.4f} ± {z:.4f} of {count}; "
        f"the spared tenth estimates {estimate:.4f} ± {width:.4f} from {len(spared)}"
    )
    return saved, false / count


def curve(pool, options, show):
    """The trade-off along NoiseAware.promising."""
    names = [f"noise-aware {p}" for p in (1.0, 1.5, 2.0, 2.5, 3.0)]
    nights = options.nights // 2
    asked = [(name, size, "normal") for name in names for size in (0, 1, 2)]
    rated = spread(pool, rates, asked, nights)
    asked = [(n, s, "normal") for n in ["greedy", *names] for s in (1.0, 4.0)]
    told = spread(pool, gains, asked, nights)
    show("\nthe trade-off: `promising`, how much belief starts a proof\n")
    show(
        f"{'':18}{'false keeps':>12}{'kept 2 sd':>10}{'1 sd':>7}{'runs/exp':>10}"
        f"{'gain 1 sd':>11}{'4 sd':>8}"
    )
    for name in names:
        false = fmean(t[0] for t in rated[name, 0, "normal"])
        both = [rated[name, size, "normal"] for size in (2, 1)]
        two, one = (sum(t[1] for t in r) / sum(t[2] for t in r) for r in both)
        runs = max(fmean(t[3] for t in r) for r in both)
        low, high = (
            ratio(
                [t[0] for t in told[name, signal, "normal"]],
                [t[0] for t in told["greedy", signal, "normal"]],
            )[0]
            for signal in (1.0, 4.0)
        )
        show(
            f"{name:18}{false:12.2f}{two:10.3f}{one:7.3f}{runs:10.2f}"
            f"{low:11.3f}{high:8.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--cores", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--quick", action="store_true", help="8 short sessions")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--curve", action="store_true")
    options = parser.parse_args()

    def show(text):
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    if options.quick:
        options.nights, options.cores = 8, min(2, options.cores)
    prepare_worker = shorten_sessions if options.quick else None
    begun = time.perf_counter()
    with multiprocessing.Pool(options.cores, prepare_worker) as pool:
        rated = measure(pool, options, show)
        lows, bias, cover = grid(pool, options, show)
        saved, false = early(pool, options, show)
        if options.curve:
            curve(pool, options, show)
    show(f"\n{time.perf_counter() - begun:.0f} s on {options.cores} cores")
    ours = rated["noise-aware"]
    reached = {k: v for k, v in lows.items() if k[0] == "noise-aware"}
    named_shapes = {k: v for k, v in reached.items() if k[2] in NAMED}
    found = {
        "false_keeps_per_night": ours[0],
        "kept_2sd": ours[1],
        "kept_1sd": ours[2],
        "runs_per_experiment": ours[3],
        "gain_ratio_worst_low": min(named_shapes.values()),
        "gain_ratio_low_signal_low": min(
            v for k, v in named_shapes.items() if k[1] in LOW_SIGNALS
        ),
        "gain_ratio_seeds_worst_low": min(
            v for k, v in reached.items() if k not in named_shapes
        ),
        "claim_bias": bias["noise-aware", FITTED, "normal"],
        "coverage": cover["noise-aware", FITTED, "normal"],
        "early_kill_saved": saved,
        "early_kill_false": false,
    }
    if options.json:
        rounded = {name: round(value, 4) for name, value in found.items()}
        print(json.dumps({"quick": options.quick, **rounded}))


if __name__ == "__main__":
    main()
