"""What a train.py imports that takes its text and metric from a module `lib`.

The recipe of Tencent-Hunyuan/Hyra-results does. In its own set-up every row begins with
a document mark, in ours it does not; this difference is left as it is.
"""

import math

import numpy as np
import prepare
import torch
from prepare import (  # noqa: F401
    MAX_SEQ_LEN,
    TIME_BUDGET,
    bits_per_byte,
    copy_to_device,
    lab,
    make_dataloader,
)


class Tokenizer(prepare.Tokenizer):
    @classmethod
    def from_directory(cls):
        return cls()

    def get_bos_token_id(self):
        return lab["VOCABULARY"] - 1


@torch.no_grad()
def evaluate_bpb(model, tokenizer, batch_size):
    """Bits per byte of the whole validation split, every token once."""
    tokens, widths = lab["text"]("validation")
    rows, inside = bits_per_byte.cut_rows(tokens, MAX_SEQ_LEN, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside
    short = -len(rows) % batch_size
    padded = np.concatenate([rows, rows[:1].repeat(short, 0)])
    scored = np.concatenate([width, np.zeros((short, width.shape[1]), width.dtype)])
    nats = 0.0
    for at in range(0, len(padded), batch_size):
        x, y = copy_to_device(padded[at : at + batch_size], "cuda")
        loss = model(x, y, reduction="none").view(x.shape).double().cpu().numpy()
        nats += float(loss[scored[at : at + batch_size] > 0].sum())
    return nats / math.log(2) / int(width.sum())
