"""How much of a claim is true: where to look, what follows, when to refuse.

A model claims a loss for every token. Some positions are then asked again in a way that
cannot be cheated (`evaluator`). This module is the arithmetic between the two, pure:

- `chances`: where to look. Three tenths of the draws are uniform, the rest go where a
  reference (the champion's claims, or how common each token is) is worse than it is
  elsewhere at such claims, because a faked gain has to show there. Not simply where the
  claim beats the reference: what one model finds hardest the next finds easier, so at
  the worst tokens a cheat of a nat hides in that. By the square, because two honest
  models differ a little everywhere, and a cheat on few tokens differs a lot there.
- `estimate`: the difference estimator. Claims plus the weighted mean of (audit - claim)
  has as its expectation what the model can do, whatever it claimed (sampling with
  replacement, Hansen and Hurwitz 1943).
- `objection`: the gates. A difference that rounding cannot explain refuses the run.

All losses are in nats, all arithmetic is float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoresearch.data.bits_per_byte import Array, bits_per_byte

# Compared over 45 shapes of a cheat in benchmarks/trust.py: the worst is caught best.
UNIFORM_SHARE = 0.3
EXCESS_POWER = 2
CLAIM_BINS = 64  # of claims, each with its usual reference
# Of the rows that are claimed, this share is asked again; at least and at most. What a
# few hundred rows cost on a GPU is not noticed beside its compiler.
AUDITED_SHARE, MAX_POSITIONS = 0.33, 4096
MIN_POSITIONS = {"cpu": 512, "mps": 512, "cuda": 1024}
SMOOTHING = 1.0  # added to each token's count

# Gates, in bits per byte where not said otherwise.
LARGEST_CORRECTION = 0.001
LARGEST_ERROR = 0.0005
LARGEST_Z, SMALLEST_CORRECTION = 4.0, 0.0001  # z alone would refuse rounding itself
# An honest answer differs by rounding only: by nothing on most devices, by 0.02 nats
# where two processes picked different kernels in bf16. Calibration may lower the first
# to the second, never below.
FAR_NATS, FAR_NATS_CALIBRATED = 0.1, 0.02
FAR_SHARE = 0.001  # of the audited positions, and always one
ABSURD_NATS = 0.5  # a single one of these is enough: no rounding gets there


@dataclass(frozen=True, slots=True)
class AuditSample:
    """Positions to audit. The same one may be drawn several times; it is asked once."""

    positions: Array  # int64 (K,): flat positions, each once
    counts: Array  # int64 (K,): how often each was drawn
    weights: Array  # float64 (K,): 1 / (positions x chance)


@dataclass(frozen=True, slots=True)
class AuditEstimate:
    """What the audit says about the claims."""

    correction: float  # bits per byte, to be added to the claimed score
    error: float  # its standard error
    far_count: int  # positions that differ by more than rounding
    asked_count: int
    largest_nats: float  # the largest difference of all


def compute_sample_size(rows: int, device: str) -> int:
    """How many positions to draw for a text of so many rows."""
    return min(max(MIN_POSITIONS[device], round(AUDITED_SHARE * rows)), MAX_POSITIONS)


def compute_unigram_losses(training: Array, targets: Array, vocabulary: int) -> Array:
    """Loss of every target under the training text's token counts, float64."""
    counts = np.bincount(training, minlength=vocabulary)[:vocabulary] + SMOOTHING
    table = math.log(counts.sum()) - np.log(counts)
    found: Array = table[targets]
    return found


def compute_draw_probabilities(claims: Array, scored: Array, reference: Array) -> Array:
    """Chance of each position to be drawn, float64 like `scored`, summing to 1."""
    uniform = scored / scored.sum()
    said = claims[scored].astype("float64")
    odd = np.zeros(scored.shape)
    odd[scored] = (
        np.maximum(0.0, compute_reference_excess(said, reference[scored]))
        ** EXCESS_POWER
    )
    if odd.sum() <= 0:
        return np.asarray(uniform)
    return np.asarray(UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * odd / odd.sum())


def compute_reference_excess(claims: Array, reference: Array) -> Array:
    """How many nats the reference is above its usual at such claims, float64 (N)."""
    edges = np.unique(np.quantile(claims, np.linspace(0.0, 1.0, CLAIM_BINS + 1)))
    level = np.searchsorted(edges[1:-1], claims, side="right")
    counts = np.bincount(level)
    some = counts > 0
    middles, usual = (
        np.bincount(level, of)[some] / counts[some] for of in (claims, reference)
    )
    return np.asarray(reference - np.interp(claims, middles, usual))


def draw_audit_positions(
    chance: Array, count: int, rng: np.random.Generator
) -> AuditSample:
    """Draw positions by their chances."""
    return StratifiedSampler(chance, count).draw_positions(rng)


class StratifiedSampler:
    """All positions, ready to be drawn from."""

    def __init__(self, chance: Array, count: int) -> None:
        self._chance = cap_probabilities(chance.ravel(), count)
        self._ends = np.cumsum(self._chance)
        self._positions = int((self._chance > 0).sum())
        self._count = count

    def draw_positions(self, rng: np.random.Generator) -> AuditSample:
        """One position from each of `count` pieces of equal chance.

        The expectation is that of independent draws, the spread a little less.
        """
        whole = self._ends[-1]
        points = (np.arange(self._count) + rng.random(self._count)) / self._count
        # Two ends may be equal: a position without a chance is never drawn.
        hits = np.searchsorted(self._ends, points * whole, side="right")
        places, times = np.unique(hits, return_counts=True)
        chance = self._chance[places] / whole
        return AuditSample(places, times, 1.0 / (self._positions * chance))


def cap_probabilities(chance: Array, count: int) -> Array:
    """The same chances, but none above one draw in all: what is over goes to the rest.

    Few tokens on which honest models disagree most would take many draws each.
    """
    most, found = 1.0 / count, chance / chance.sum()
    for _ in range(50):
        full = found >= most
        room, rest = 1.0 - most * full.sum(), found[~full].sum()
        if not full.any() or rest < 1e-12 or rest >= room * (1 - 1e-9):
            break
        found = np.where(full, most, found * (room / rest))
    return np.asarray(found)


def estimate_correction(
    drawn: AuditSample,
    differences: Array,
    scored: int,
    text_bytes: int,
    far_nats: float,
) -> AuditEstimate:
    """Differences (audit - claim) at the drawn places -> the correction."""
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


def find_objection(found: AuditEstimate) -> str | None:
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
    several = found.far_count > max(1, FAR_SHARE * found.asked_count)
    if several or found.largest_nats > ABSURD_NATS:
        return (
            f"{found.far_count} of {found.asked_count} audited losses differ from the claims: the "
            "model looks ahead, at other rows, or keeps state between them"
        )
    if error > LARGEST_ERROR:
        return (
            f"claims and audit scatter by {error:.4f}: the model does not answer the "
            "same question twice in the same way"
        )
    return None


def calibrate_far_nats(largest_nats: float) -> float:
    """The threshold for a device whose baseline differed by at most this much."""
    return min(FAR_NATS, max(FAR_NATS_CALIBRATED, 4 * largest_nats))
