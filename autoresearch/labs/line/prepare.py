"""The apparatus. Locked: fit y = 3x + 1, scored on points that are never shown."""

import json

from autoresearch.guest import begin  # noqa: F401  (train.py calls it)

METRIC = "mse"  # mean squared error
LOWER_IS_BETTER = True
CAUSAL = False  # outputs are scored here; nothing to peek at

LINE = [(x / 10, 3 * x / 10 + 1) for x in range(40)]
TRAIN, SPLITS = LINE[:20], {"validation": LINE[20:30], "holdout": LINE[30:]}


def prepare(show):
    """Nothing to fetch, train or seal."""
    show("line", 1, 1)


def fingerprint():
    return "line-1"


def training():
    """What train.py gets when its clock starts."""
    return json.dumps(TRAIN).encode()


def inputs(split):
    return [x for x, _ in SPLITS[split]]


def score(outputs, split):
    """Mean squared error. Runs in the harness; the answers never leave it."""
    answers = [y for _, y in SPLITS[split]]
    if len(outputs) != len(answers):
        raise ValueError(f"{len(outputs)} outputs for {len(answers)} inputs")
    return sum((float(o) - y) ** 2 for o, y in zip(outputs, answers)) / len(answers)


# python prepare.py            make everything
# python prepare.py score DIR  measure a model that `python train.py --out DIR` wrote

if __name__ == "__main__":
    import sys

    from autoresearch import scoring

    if sys.argv[1:2] == ["score"]:
        scoring.main(sys.argv[2:])
    prepare(lambda stage, done, total: print(f"{stage} {done}/{total}"))
    print("Next: autoresearch check")
