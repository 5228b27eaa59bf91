"""How much of a claim is true: where to look, what follows, when to refuse.

A model claims a loss for every token. Some positions are then asked again in a way that
cannot be cheated (`evaluator`). This module is the arithmetic between the two, pure:

- `chances`: where to look. Four tenths of the draws are uniform, the rest go where the
  claim beats a reference (the champion's claims, or how common each token is), because
  a faked gain has to show there; by its cube, because two honest models differ a
  little nearly everywhere, and a cheat worth as much on few tokens differs a lot there.
- `estimate`: the difference estimator. Claims plus the weighted mean of (audit - claim)
  has as its expectation what the model can do, whatever it claimed (sampling with
  replacement, Hansen and Hurwitz 1943).
- `objection`: the gates. A difference that rounding cannot explain refuses the run.

All losses are in nats, all arithmetic is float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoresearch.metric import Array, bits_per_byte

UNIFORM_SHARE = 0.4
POWER = 3  # measured in benchmarks/trust.py; the square misses a few, small cheats
# Of the rows that are claimed, this share is asked again; at least and at most.
SHARE, FEWEST, MOST = 0.12, 256, 4096
SMOOTHING = 1.0  # added to each token's count

# Gates, in bits per byte where not said otherwise.
LARGEST_CORRECTION = 0.001
LARGEST_ERROR = 0.0005
LARGEST_Z, SMALLEST_CORRECTION = 4.0, 0.0001  # z alone would refuse rounding itself
# An honest answer differs by rounding only: by nothing on most devices, by 0.02 nats
# where two processes picked different kernels in bf16. Calibration may lower the first
# to the second, never below.
FAR_NATS, FAR_NATS_CALIBRATED = 0.1, 0.02
FAR_SHARE = 0.002  # of the audited positions, and always one
ABSURD_NATS = 0.5  # a single one of these is enough: no rounding gets there


@dataclass(frozen=True, slots=True)
class Drawn:
    """Positions to audit. The same one may be drawn several times; it is asked once."""

    places: Array  # int64 (K,): flat positions, each once
    times: Array  # int64 (K,): how often each was drawn
    weights: Array  # float64 (K,): 1 / (positions x chance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the audit says about the claims."""

    correction: float  # bits per byte, to be added to the claimed score
    error: float  # its standard error
    far: int  # positions that differ by more than rounding
    asked: int
    largest_nats: float  # the largest difference of all


def how_many(rows: int) -> int:
    """How many positions to draw for a text of so many rows."""
    return min(max(FEWEST, round(SHARE * rows)), MOST)


def common_losses(training: Array, targets: Array, vocabulary: int) -> Array:
    """Loss of every target under the training text's token counts, float64."""
    counts = np.bincount(training, minlength=vocabulary)[:vocabulary] + SMOOTHING
    table = math.log(counts.sum()) - np.log(counts)
    found: Array = table[targets]
    return found


def chances(claims: Array, scored: Array, reference: Array) -> Array:
    """Chance of each position to be drawn, float64 like `scored`, summing to 1."""
    uniform = scored / scored.sum()
    gain = np.where(scored, np.maximum(0.0, reference - claims), 0.0).astype("float64")
    gain **= POWER
    if gain.sum() <= 0:
        return np.asarray(uniform)
    return np.asarray(UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * gain / gain.sum())


def draw(chance: Array, count: int, rng: np.random.Generator) -> Drawn:
    """Draw positions with replacement."""
    flat = chance.ravel()
    ends = np.cumsum(flat)
    # Two points of a sum may be equal: a position without a chance is never drawn.
    hits = np.searchsorted(ends, rng.random(count) * ends[-1], side="right")
    places, times = np.unique(hits, return_counts=True)
    positions = int((flat > 0).sum())
    return Drawn(places, times, 1.0 / (positions * flat[places] / ends[-1]))


def estimate(
    drawn: Drawn, differences: Array, scored: int, text_bytes: int, far_nats: float
) -> Estimate:
    """Differences (audit - claim) at the drawn places -> the correction."""
    weighted = np.repeat(differences * drawn.weights, drawn.times)
    mean = float(weighted.mean())
    spread = float(weighted.std(ddof=1)) / math.sqrt(len(weighted))
    return Estimate(
        bits_per_byte(mean * scored, text_bytes),
        bits_per_byte(spread * scored, text_bytes),
        int((np.abs(differences) > far_nats).sum()),
        len(differences),
        float(np.abs(differences).max()),
    )


def objection(found: Estimate) -> str | None:
    """Why this run has no score; None when claims and audit agree."""
    correction, error = found.correction, found.error
    sure = abs(correction) > LARGEST_Z * error
    if abs(correction) > LARGEST_CORRECTION or (
        sure and abs(correction) > SMALLEST_CORRECTION
    ):
        return (
            f"claims and audit differ by {correction:+.4f} on average: logits at t "
            "may depend only on the weights and on tokens up to t of the same row"
        )
    several = found.far > max(1, FAR_SHARE * found.asked)
    if several or found.largest_nats > ABSURD_NATS:
        return (
            f"{found.far} of {found.asked} audited losses differ from the claims: the "
            "model looks ahead, at other rows, or keeps state between them"
        )
    if error > LARGEST_ERROR:
        return (
            f"claims and audit scatter by {error:.4f}: the model does not answer the "
            "same question twice in the same way"
        )
    return None


def far_for(largest_nats: float) -> float:
    """The threshold for a device whose baseline differed by at most this much."""
    return min(FAR_NATS, max(FAR_NATS_CALIBRATED, 4 * largest_nats))
