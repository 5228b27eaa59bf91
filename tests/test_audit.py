"""Where the audit looks, and what it makes of what it sees: arithmetic, no processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoresearch.measure import audit

ROWS, CONTEXT, BYTES_PER_TOKEN = 400, 100, 2.5


@pytest.fixture
def models():
    """(losses of a model, of another one, scored): alike, as two trainings are."""
    rng = np.random.default_rng(3)
    common = rng.gamma(4.0, 1.0, (ROWS, CONTEXT))
    ours, theirs = (
        np.maximum(0.0, common + rng.normal(0.0, 1.0, common.shape)) for _ in "ab"
    )
    scored = rng.random(common.shape) < 0.97
    return ours, theirs, scored


def text_bytes(scored):
    return int(scored.sum() * BYTES_PER_TOKEN)


def judged(truth, claims, reference, scored, rng, count=400):
    """One audit: (objection or None, correction in bits per byte)."""
    chance = audit.compute_draw_probabilities(claims, scored, reference)
    drawn = audit.draw_audit_positions(chance, count, rng)
    off = (truth - claims).ravel()[drawn.positions]
    size = text_bytes(scored)
    found = audit.estimate_correction(drawn, off, int(scored.sum()), size, 0.02)
    return audit.find_objection(found), found.correction


def gain_of(truth, claims, scored):
    """What a cheat gains, in bits per byte."""
    off = float((truth - claims)[scored].sum())
    return audit.bits_per_byte(off, text_bytes(scored))


def test_an_honest_model_is_never_refused(models):
    ours, theirs, scored = models
    rng = np.random.default_rng(0)

    found = [judged(ours, ours, theirs, scored, rng) for _ in range(300)]

    assert {why for why, _ in found} == {None}
    assert {correction for _, correction in found} == {0.0}


def test_the_correction_is_on_average_what_the_claims_are_off_by(models):
    ours, theirs, scored = models
    rng = np.random.default_rng(1)
    claims = np.maximum(0.0, ours - rng.exponential(0.05, ours.shape))

    found = [judged(ours, claims, theirs, scored, rng)[1] for _ in range(400)]

    wanted = gain_of(ours, claims, scored)
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(wanted, abs=4 * error)


def test_a_cheat_on_the_hardest_tokens_is_seen_though_others_find_them_easier(models):
    """There the champion's losses lie below the model's: a cheat hides in that."""
    ours, theirs, scored = models
    hardest = np.argsort(-np.where(scored, ours, 0.0).ravel())[:300]
    claims = ours.copy()
    claims.ravel()[hardest] -= 1.0
    rng = np.random.default_rng(2)

    found = [judged(ours, claims, theirs, scored, rng)[0] for _ in range(100)]

    chance = audit.compute_draw_probabilities(claims, scored, theirs).ravel()
    assert (theirs.ravel()[hardest] < ours.ravel()[hardest]).mean() > 0.6
    assert chance[hardest].mean() > 3 * chance[scored.ravel()].mean()
    assert sum(why is not None for why in found) > 90


def test_what_is_not_scored_is_never_drawn(models):
    ours, theirs, scored = models
    chance = audit.compute_draw_probabilities(ours, scored, theirs)

    drawn = audit.draw_audit_positions(chance, 5000, np.random.default_rng(4))

    assert chance.sum() == pytest.approx(1.0)
    assert scored.ravel()[drawn.positions].all()


def test_without_any_difference_from_the_reference_draws_are_even():
    scored = np.ones((3, 4), dtype=bool)
    claims = np.full((3, 4), 2.0, dtype="<f4")

    assert audit.compute_draw_probabilities(claims, scored, claims) == pytest.approx(
        1 / 12
    )


@given(
    arrays(float, st.integers(1, 60), elements=st.floats(0.0, 1e6)),
    st.integers(1, 80),
)
def test_no_position_takes_more_than_one_draw(weights, count):
    if not weights.sum() > 1e-3:
        return

    found = audit.cap_probabilities(weights, count)

    assert ((found > 0) <= (weights > 0)).all()
    some = int((weights > 1e-9 * weights.sum()).sum())
    if count < some:  # else there are more draws than positions worth one
        assert found.sum() == pytest.approx(1.0, rel=1e-3)
        assert found.max() <= (1 + 1e-3) / count


def test_longer_texts_and_gpus_are_asked_more():
    assert audit.compute_sample_size(100, "cpu") == 512
    assert audit.compute_sample_size(100, "cuda") == 1024
    assert (
        audit.compute_sample_size(4000, "cpu")
        == audit.compute_sample_size(4000, "cuda")
        == 1320
    )
    assert audit.compute_sample_size(10**6, "cpu") == audit.MAX_POSITIONS
