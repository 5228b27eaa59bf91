"""Bits per byte: every token scored once, and sums that hold."""

import math
from decimal import Decimal, getcontext

import pytest

np = pytest.importorskip("numpy")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from autoresearch.data import bits_per_byte  # noqa: E402
from autoresearch.data.bits_per_byte import InvalidLogits  # noqa: E402

MARK = 7


def a_text(count: int, seed: int = 1):
    """(tokens with marks here and there and at the start, bytes of each entry)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, size=count).astype(np.uint16)
    if count:
        tokens[0] = MARK
    widths = rng.integers(1, 9, size=50).astype(np.uint8)
    widths[MARK] = 0
    return tokens, widths


# -- rows ------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 33))
def test_every_token_but_the_first_is_a_target_exactly_once(count, context):
    tokens = np.arange(count, dtype=np.uint16)  # each token is its own position

    rows, inside = bits_per_byte.cut_rows(tokens, context, filler=65535)

    assert rows.dtype == np.uint16
    assert rows.shape == (len(inside), context + 1)
    assert inside.shape == (len(rows), context)
    assert rows[:, 1:][inside].tolist() == list(range(1, count))


@given(st.integers(1, 400), st.integers(1, 33))
def test_a_target_follows_the_token_before_it_in_the_text(count, context):
    tokens = np.arange(count, dtype=np.uint16)

    rows, inside = bits_per_byte.cut_rows(tokens, context, filler=65535)

    before, target = rows[:, :-1][inside].astype(int), rows[:, 1:][inside].astype(int)
    assert (target == before + 1).all()


@pytest.mark.parametrize("count", [1, 2, 16, 17, 18, 31, 32, 33, 100])
def test_what_fills_the_last_row_up_is_never_scored(count):
    tokens = np.full(count, 3, dtype=np.uint16)

    rows, inside = bits_per_byte.cut_rows(tokens, 16, filler=9)

    assert (rows[:, 1:][inside] == 3).all()
    assert inside.sum() == count - 1
    assert (rows[:, 1:][~inside] == 9).all()


def test_a_whole_number_of_rows_gets_no_empty_one():
    tokens = np.zeros(1 + 5 * 16, dtype=np.uint16)

    rows, inside = bits_per_byte.cut_rows(tokens, 16, filler=9)

    assert len(rows) == 5
    assert inside.all()


def test_a_text_of_one_token_or_none_has_nothing_to_score():
    for count in (0, 1):
        _, inside = bits_per_byte.cut_rows(
            np.zeros(count, dtype=np.uint16), 16, filler=9
        )
        assert not inside.any()


def test_rows_are_a_copy_that_shares_nothing_with_the_text():
    tokens = np.zeros(100, dtype=np.uint16)

    rows, _ = bits_per_byte.cut_rows(tokens, 10, filler=9)
    rows[:] = 5

    assert not tokens.any()
    assert rows.flags.c_contiguous


# -- bytes -----------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 33), st.integers(0, 9))
@settings(max_examples=60)
def test_the_bytes_of_all_targets_sum_to_the_length_of_the_text(count, context, seed):
    tokens, widths = a_text(count, seed)
    text_bytes = sum(int(widths[token]) for token in tokens)

    rows, inside = bits_per_byte.cut_rows(tokens, context, filler=int(tokens[0]))
    width = widths[rows[:, 1:]] * inside

    assert int(width.sum(dtype="int64")) == text_bytes


@given(st.integers(2, 300), st.integers(1, 33), st.integers(0, 9))
@settings(max_examples=60)
def test_marks_are_read_but_not_scored(count, context, seed):
    tokens, widths = a_text(count, seed)

    rows, inside = bits_per_byte.cut_rows(tokens, context, filler=int(tokens[0]))
    scored = widths[rows[:, 1:]] * inside > 0

    assert (rows[:, 1:][scored] != MARK).all()
    assert scored.sum() == (tokens != MARK).sum()
    assert (rows == MARK).any()


def test_bits_per_byte_of_a_uniform_guess_is_its_entropy():
    # 1000 tokens of two bytes each, guessed evenly among 256: eight bits for two bytes.
    assert bits_per_byte.bits_per_byte(1000 * math.log(256), 2000) == pytest.approx(4.0)


def test_bits_per_byte_of_a_perfect_model_is_zero():
    assert bits_per_byte.bits_per_byte(0.0, 1234) == 0.0


# -- losses ----------------------------------------------------------------------------


def precise(row, target: int) -> float:
    """-log softmax with fifty digits."""
    getcontext().prec = 50
    numbers = [Decimal(float(x)) for x in row]
    highest = max(numbers)
    total = sum((number - highest).exp() for number in numbers)
    return float(total.ln() - (numbers[target] - highest))


@pytest.mark.parametrize("scale", [0.001, 1.0, 30.0, 1000.0, 9999.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_losses_agree_with_fifty_digits(scale, dtype):
    rng = np.random.default_rng(1)
    logits = (rng.uniform(-1, 1, size=(20, 65)) * scale).astype(dtype)
    targets = rng.integers(0, 65, size=20)

    found = bits_per_byte.compute_token_losses(logits, targets)

    assert found.dtype == np.float64
    expected = [precise(row, t) for row, t in zip(logits, targets, strict=True)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_losses_are_never_negative_and_the_targets_probabilities_sum_to_one():
    rng = np.random.default_rng(2)
    row = (rng.normal(size=64) * 50).astype("float32")

    found = bits_per_byte.compute_token_losses(np.tile(row, (64, 1)), np.arange(64))

    assert (found >= 0).all()
    assert np.exp(-found).sum() == pytest.approx(1.0, abs=1e-12)


def test_a_common_offset_of_a_billion_is_refused_and_buys_nothing():
    logits = np.random.default_rng(3).normal(size=(4, 100)).astype("float32")
    certain_of_anything = logits + np.float32(1e9)  # in float32 all are the same

    with pytest.raises(InvalidLogits, match="beyond"):
        bits_per_byte.compute_token_losses(certain_of_anything, np.zeros(4, dtype=int))


@pytest.mark.parametrize("offset", [-9000.0, 0.0, 9000.0])
def test_the_largest_offset_that_passes_gains_nothing(offset):
    rng = np.random.default_rng(4)
    logits = (rng.normal(size=(50, 100)) + offset).astype("float32")
    targets = rng.integers(0, 100, size=50)

    found = bits_per_byte.compute_token_losses(logits, targets)

    expected = [precise(row, t) for row, t in zip(logits, targets, strict=True)]
    assert found == pytest.approx(expected, rel=1e-12)
    # Rounding to what float32 holds near 9000 cannot tell the target from the rest.
    assert found.mean() == pytest.approx(math.log(100) + 0.5, abs=0.4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [(0, 0), (3, 9)])
def test_logits_that_are_not_finite_are_refused(bad, at):
    logits = np.zeros((4, 10), dtype="float32")
    logits[at] = bad

    with pytest.raises(InvalidLogits, match="not finite"):
        bits_per_byte.compute_token_losses(logits, np.zeros(4, dtype=int))


@pytest.mark.parametrize("huge", [1.1e4, -1.1e4, 3e38, -3e38])
def test_huge_logits_are_refused(huge):
    logits = np.zeros((4, 10), dtype="float32")
    logits[2, 2] = huge

    with pytest.raises(InvalidLogits, match="beyond"):
        bits_per_byte.compute_token_losses(logits, np.zeros(4, dtype=int))


def test_no_positions_are_no_losses():
    assert bits_per_byte.compute_token_losses(
        np.zeros((0, 10), "float32"), np.zeros(0, int)
    ).shape == (0,)


def test_the_logits_that_came_in_are_left_as_they_were():
    logits = np.ones((2, 5), dtype="float64")

    bits_per_byte.compute_token_losses(logits, np.array([0, 1]))

    assert (logits == 1).all()
