"""What the original's train.py imports, over the text that our lab has sealed.

A train.py of the public loop that inspired this one finds here the names it knows, and
so trains on our tokens and is measured on our validation tokens, every one of them
once. benchmarks/gpu.py sets the environment. Not covered: its own packing of documents
into rows (it gets ours), and its seed, which it fixes itself: ours moves the text only.
"""

import math
import os
import sys

import torch

sys.path.insert(0, os.environ["BENCHMARK_PACKAGE"])

from autoresearch.data import bits_per_byte
from autoresearch.guest.runtime import copy_to_device, iter_shuffled_batches

lab = {"__name__": "prepare"}
with open(os.environ["BENCHMARK_PREPARE"]) as file:
    exec(file.read(), lab)

MAX_SEQ_LEN = lab["CONTEXT"]
TIME_BUDGET = float(os.environ["BENCHMARK_SECONDS"])
EVALUATION_ROWS = 32


class Tokenizer:
    @classmethod
    def from_directory(cls):
        return cls()

    def get_vocab_size(self):
        return lab["VOCABULARY"]


def make_dataloader(tokenizer, rows, context, split):
    """Yield x, y, epoch; the epoch is not counted."""
    tokens = lab["sealed"]().tokens(split)
    for batch in iter_shuffled_batches(
        tokens, rows, context, int(os.environ["BENCHMARK_SEED"])
    ):
        yield *copy_to_device(batch, "cuda"), 1


@torch.no_grad()
def evaluate_bpb(model, tokenizer, batch_size):
    """Bits per byte of the whole validation split, without compiling another shape."""
    eager = getattr(model, "_orig_mod", model)
    tokens, widths = lab["text"]("validation")
    rows, inside = bits_per_byte.cut_rows(tokens, MAX_SEQ_LEN, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside
    nats = 0.0
    for at in range(0, len(rows), EVALUATION_ROWS):
        x, y = copy_to_device(rows[at : at + EVALUATION_ROWS], "cuda")
        loss = eager(x, y, reduction="none").view(x.shape).double().cpu().numpy()
        nats += float(loss[width[at : at + EVALUATION_ROWS] > 0].sum())
    return nats / math.log(2) / int(width.sum())
