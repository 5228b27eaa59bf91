"""Bits per byte: which tokens are scored, and their sum. Trusted arithmetic.

The text is one stream of tokens, each document preceded by a mark that stands for no
bytes. Row i holds tokens i*T to i*T + T, so that every token but the first is the
target of exactly one position. Marks are inputs but not scored. The denominator is
the number of raw bytes the scored tokens stand for: the length of the text.

Not covered: where the losses come from (`measure.evaluator`).
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
LARGEST_LOGIT = 1e4


class InvalidLogits(Exception):
    """Logits that give no valid losses; the message says why."""


def cut_rows(tokens: Array, context: int, filler: int) -> tuple[Array, Array]:
    """Cut tokens (N,) into (inputs uint16 (R, T+1), scored bool (R, T)).

    The last row is padded with `filler`, whose positions are not scored.
    """
    count = max(1, math.ceil((len(tokens) - 1) / context))
    padded = np.full(count * context + 1, filler, dtype=np.uint16)
    padded[: len(tokens)] = tokens
    cut = np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context]
    inside = np.arange(1, len(padded)).reshape(count, context) < len(tokens)
    return np.ascontiguousarray(cut), inside


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Convert the total loss over a text, in nats, to bits per byte."""
    return nats / math.log(2) / text_bytes


def compute_token_losses(logits: Array, targets: Array) -> Array:
    """Compute the negative log-likelihood in nats, float64 (K,), of logits (K, V).

    Subtracts the maximum first and sums in float64: in float32 a large common offset
    absorbs the differences and makes any target look certain. Raises InvalidLogits.
    """
    if not np.isfinite(logits).all():
        raise InvalidLogits("logits that are not finite")
    if np.abs(logits).max(initial=0.0) > LARGEST_LOGIT:
        raise InvalidLogits(f"logits beyond {LARGEST_LOGIT:g}")
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=-1))
    picked: Array = np.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return np.asarray(total - picked)
