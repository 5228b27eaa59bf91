"""The apparatus: text, tokenizer, splits and metric. Locked.

Nothing here knows a model, and train.py never sees what is held out. Change a constant
and commit it, and a new series begins: scores of different series are never compared.
"""

import functools
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads that spin ran 8x slower beside a busy neighbour

from autoresearch import corpus
from autoresearch.guest import begin  # noqa: F401  (train.py calls it)

# -----------------------------------------------------------------------------
# the text

TEXT = "python"  # python, fineweb-edu, climbmix, tinystories, or a path
VOCABULARY = 1024  # ids of the BPE tokenizer, the document mark included
CONTEXT = 256  # tokens a model may look back on when it is scored
VALIDATION_BYTES = 500_000  # held out and scored after every run
HOLDOUT_BYTES = 500_000  # held out from everybody until the night is over
MAXIMUM_BYTES = None  # of training text; None takes all there is

# -----------------------------------------------------------------------------
# the metric

METRIC = "val_bpb"  # bits the model needs for the next byte of validation text
LOWER_IS_BETTER = True
CAUSAL = True  # claim and audit: logits at t may depend on tokens up to t only

# -----------------------------------------------------------------------------
# what the harness asks for

RECIPE = corpus.Recipe(TEXT, VOCABULARY, VALIDATION_BYTES, HOLDOUT_BYTES, MAXIMUM_BYTES)


def prepare(show):
    """Fetch, tokenise and seal. Running it twice does nothing."""
    corpus.prepare(RECIPE, show)


@functools.cache
def sealed():
    return corpus.require(RECIPE)


def fingerprint():
    """The name of text, tokenizer and splits."""
    return sealed().fingerprint


def verify():
    """Are the sealed files what they were? Asked before and after every run."""
    sealed().verify()


def training():
    """What train.py gets when its clock starts: tokens, uint16."""
    return sealed().path("train")


def text(split):
    """(tokens, raw bytes of each id) of a held-out split."""
    return sealed().tokens(split), sealed().token_bytes()


def tokenizer_files():
    return [sealed().folder / "tokenizer.txt"]


# -----------------------------------------------------------------------------
# python prepare.py            make everything
# python prepare.py score DIR  measure a model that `python train.py --out DIR` wrote

if __name__ == "__main__":
    import sys

    from autoresearch import scoring

    if sys.argv[1:2] == ["score"]:
        scoring.main(sys.argv[2:])
    else:
        start = time.time()
        prepare(lambda stage, done, total: print(f"{stage}: {done}/{total}", end="\r"))
        for split, counts in sealed().manifest["splits"].items():
            print(f"{split:<11}" + "  ".join(f"{v:,} {k}" for k, v in counts.items()))
        print(f"sealed {fingerprint()} in {time.time() - start:.1f} s")
        print("Next: autoresearch check")
