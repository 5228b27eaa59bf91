"""A text lab without a tokenizer to train: bytes of a made-up language."""

import random

from autoresearch.guest import begin  # noqa: F401

METRIC = "val_bpb"
LOWER_IS_BETTER = True
CAUSAL = True
VOCABULARY = 257  # bytes and a document mark
CONTEXT = 64
MARK = 256
WORDS = ["the", "model", "learns", "a", "little", "every", "night", "and", "sleeps"]


def tokens(seed, documents):
    import numpy as np

    draw = random.Random(seed)
    out = []
    for _ in range(documents):
        text = " ".join(draw.choice(WORDS) for _ in range(30))
        out += [MARK, *text.encode()]
    return np.array(out, dtype="<u2")


def prepare(show):
    show("text", 1, 1)


def fingerprint():
    return "words-1"


def training():
    return tokens(1, 400).tobytes()


def text(split):
    import numpy as np

    widths = np.ones(VOCABULARY, dtype=np.int64)
    widths[MARK] = 0
    return tokens({"validation": 2, "holdout": 3}[split], 30), widths


def tokenizer_files():
    return []
