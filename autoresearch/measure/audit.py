"""Audit of claimed losses: which positions to ask again, the correction, the gates.

A model claims a loss for every token. Some positions are then asked again in a way that
cannot be cheated (`evaluator`). This module is the arithmetic between the two, pure:

- `compute_draw_probabilities`: which positions. Three tenths of the draws are uniform,
  the rest go where a reference (the champion's claims, or unigram losses) is worse than
  it usually is at such claims, because a faked gain has to show there. Not simply where
  the claim beats the reference: what one model finds hardest the next finds easier, so
  at the worst tokens that would hide a cheat of a nat. By the square, because two
  honest models differ a little everywhere, and a cheat on few tokens differs a lot.
- `estimate_correction`: the difference estimator. Claims plus the weighted mean of
  (audit - claim) has as its expectation what the model achieves, whatever it claimed
  (sampling with replacement, Hansen and Hurwitz 1943).
- `find_objection`: the gates. A difference too large for rounding fails the run.

All losses are in nats, all arithmetic is float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoresearch.data.bits_per_byte import Array, bits_per_byte

# Compared over 45 shapes of a cheat in benchmarks/trust.py: the worst is caught best.
UNIFORM_SHARE = 0.3
EXCESS_POWER = 2
CLAIM_BINS = 64  # quantiles of the claims, each with its usual reference
# The share of the claimed rows that is asked again, with a minimum and a maximum. On a
# GPU a few hundred rows cost little beside compiling.
AUDITED_SHARE, MAX_POSITIONS = 0.33, 4096
MIN_POSITIONS = {"cpu": 512, "mps": 512, "cuda": 1024}
SMOOTHING = 1.0  # added to each token's count

# Gates, in bits per byte unless the name says nats.
LARGEST_CORRECTION = 0.001
LARGEST_ERROR = 0.0005
LARGEST_Z, SMALLEST_CORRECTION = 4.0, 0.0001  # z alone would refuse rounding itself
# An honest answer differs by rounding only: by nothing on most devices, by 0.02 nats
# where two processes picked different kernels in bf16. Calibration may lower FAR_NATS
# to FAR_NATS_CALIBRATED, never below.
FAR_NATS, FAR_NATS_CALIBRATED = 0.1, 0.02
FAR_SHARE = 0.001  # of the audited positions; one is always tolerated
ABSURD_NATS = 0.5  # one of these is enough: rounding never reaches it


@dataclass(frozen=True, slots=True)
class AuditSample:
    """Positions to audit. One that is drawn several times is asked once."""

    positions: Array  # int64 (K,): flat, distinct
    counts: Array  # int64 (K,): how often each was drawn
    weights: Array  # float64 (K,): 1 / (positions x chance)


@dataclass(frozen=True, slots=True)
class AuditEstimate:
    """The result of an audit."""

    correction: float  # bits per byte, to be added to the claimed score
    error: float  # its standard error
    far_count: int  # positions that differ by more than rounding
    asked_count: int
    largest_nats: float  # the largest difference of all


def compute_sample_size(rows: int, device: str) -> int:
    """Return how many positions to draw for a text of `rows` rows."""
    return min(max(MIN_POSITIONS[device], round(AUDITED_SHARE * rows)), MAX_POSITIONS)


def compute_unigram_losses(training: Array, targets: Array, vocabulary: int) -> Array:
    """Loss of every target under the training text's token counts, float64, nats."""
    counts = np.bincount(training, minlength=vocabulary)[:vocabulary] + SMOOTHING
    table = math.log(counts.sum()) - np.log(counts)
    losses: Array = table[targets]
    return losses


def compute_draw_probabilities(claims: Array, scored: Array, reference: Array) -> Array:
    """Probability of each position, float64 like `scored`, summing to 1."""
    uniform = scored / scored.sum()
    claimed = claims[scored].astype("float64")
    excess = np.maximum(0.0, compute_reference_excess(claimed, reference[scored]))
    focus = np.zeros(scored.shape)
    focus[scored] = excess**EXCESS_POWER
    if focus.sum() <= 0:
        return np.asarray(uniform)
    focus /= focus.sum()
    return np.asarray(UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * focus)


def compute_reference_excess(claims: Array, reference: Array) -> Array:
    """Nats of the reference above its usual value at such claims, float64 (N,)."""
    edges = np.unique(np.quantile(claims, np.linspace(0.0, 1.0, CLAIM_BINS + 1)))
    bins = np.searchsorted(edges[1:-1], claims, side="right")
    counts = np.bincount(bins)
    filled = counts > 0
    middles, usual = (
        np.bincount(bins, values)[filled] / counts[filled]
        for values in (claims, reference)
    )
    return np.asarray(reference - np.interp(claims, middles, usual))


def draw_audit_positions(
    probability: Array, count: int, rng: np.random.Generator
) -> AuditSample:
    """Draw `count` positions by their probabilities."""
    return StratifiedSampler(probability, count).draw_positions(rng)


class StratifiedSampler:
    """Stratified sampling by probability, prepared for repeated draws."""

    def __init__(self, probability: Array, count: int) -> None:
        self._probability = cap_probabilities(probability.ravel(), count)
        self._ends = np.cumsum(self._probability)
        self._positions = int((self._probability > 0).sum())
        self._count = count

    def draw_positions(self, rng: np.random.Generator) -> AuditSample:
        """Draw one position from each of `count` strata of equal probability.

        The expectation is that of independent draws, the variance a little less.
        """
        total = self._ends[-1]
        points = (np.arange(self._count) + rng.random(self._count)) / self._count
        # Two ends may be equal: a position of probability 0 is never drawn.
        hits = np.searchsorted(self._ends, points * total, side="right")
        positions, counts = np.unique(hits, return_counts=True)
        probability = self._probability[positions] / total
        return AuditSample(positions, counts, 1.0 / (self._positions * probability))


def cap_probabilities(probability: Array, count: int) -> Array:
    """Cap each probability at one expected draw, and give the excess to the rest.

    Otherwise the few tokens on which honest models disagree most take many draws each.
    """
    limit, capped = 1.0 / count, probability / probability.sum()
    for _ in range(50):
        full = capped >= limit
        room, rest = 1.0 - limit * full.sum(), capped[~full].sum()
        if not full.any() or rest < 1e-12 or rest >= room * (1 - 1e-9):
            break
        capped = np.where(full, limit, capped * (room / rest))
    return np.asarray(capped)


def estimate_correction(
    drawn: AuditSample,
    differences: Array,
    scored: int,
    text_bytes: int,
    far_nats: float,
) -> AuditEstimate:
    """Differences (audit - claim) in nats, at drawn positions -> the correction."""
    weighted = np.repeat(differences * drawn.weights, drawn.counts)
    mean = float(weighted.mean())
    spread = float(weighted.std(ddof=1)) / math.sqrt(len(weighted))
    return AuditEstimate(
        bits_per_byte(mean * scored, text_bytes),
        bits_per_byte(spread * scored, text_bytes),
        int((np.abs(differences) > far_nats).sum()),
        len(differences),
        float(np.abs(differences).max()),
    )


def find_objection(estimate: AuditEstimate) -> str | None:
    """Say why this run has no score; None when claims and audit agree."""
    correction, error = estimate.correction, estimate.error
    is_significant = abs(correction) > LARGEST_Z * error
    if abs(correction) > LARGEST_CORRECTION or (
        is_significant and abs(correction) > SMALLEST_CORRECTION
    ):
        return (
            f"claims and audit differ by {correction:+.4f} on average: logits at t "
            "may depend only on the weights and on tokens up to t of the same row"
        )
    several = estimate.far_count > max(1, FAR_SHARE * estimate.asked_count)
    if several or estimate.largest_nats > ABSURD_NATS:
        return (
            f"{estimate.far_count} of {estimate.asked_count} audited losses differ "
            "from the claims: the model looks ahead, at other rows, or keeps state "
            "between them"
        )
    if error > LARGEST_ERROR:
        return (
            f"claims and audit scatter by {error:.4f}: the model does not answer the "
            "same question twice in the same way"
        )
    return None


def calibrate_far_nats(largest_nats: float) -> float:
    """Return the threshold for a device whose baseline differed by at most this."""
    return min(FAR_NATS, max(FAR_NATS_CALIBRATED, 4 * largest_nats))
