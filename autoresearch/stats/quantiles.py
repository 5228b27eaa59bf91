"""Quantiles of the normal, Student and chi-square distributions, exact to 1e-9.

The distribution functions are the regularised incomplete beta and gamma functions
(continued fraction and series, Press et al., Numerical Recipes, 6.2 and 6.4); quantiles
are found by bisection. Degrees of freedom may be fractional.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

NORMAL_95 = 1.9599639845400545  # two-sided: 97.5 % lie below
NORMAL = NormalDist()
MIN_TAIL_PROBABILITY = 1e-300  # of a normal: 37 standard deviations out
TINY = 1e-300
MAX_STEPS = 500  # of a series or a continued fraction; they need some 20 to 100


@lru_cache(maxsize=4096)
def chi_square_quantile(degrees: float, z: float) -> float:
    """The chi-square quantile at the probability of the normal deviate `z`."""
    # Solved in the smaller tail, where the probability keeps its digits.
    p = NORMAL.cdf(-abs(z))
    if z < 0:
        return find_root_by_bisection(
            lambda x: regularised_incomplete_gamma(degrees / 2, x / 2)[0] - p
        )
    return find_root_by_bisection(
        lambda x: p - regularised_incomplete_gamma(degrees / 2, x / 2)[1]
    )


def normal_quantile_from_t(t: float, degrees: float) -> float:
    """The normal deviate with the tail probability of Student's `t`."""
    if math.isinf(degrees):
        return t
    tail = max(t_tail_probability(abs(t), degrees), MIN_TAIL_PROBABILITY)
    return math.copysign(-NORMAL.inv_cdf(tail) if tail < 0.5 else 0.0, t)


@lru_cache(maxsize=4096)
def t_quantile_from_normal(z: float, degrees: float) -> float:
    """Student's t with the tail probability of the normal deviate `z`."""
    if math.isinf(degrees) or z == 0:
        return z
    p = NORMAL.cdf(-abs(z))
    return math.copysign(
        find_root_by_bisection(lambda t: p - t_tail_probability(t, degrees)), z
    )


def t_quantile_95(degrees: float) -> float:
    """Student's 97.5 % quantile: half of a 95 % interval, in standard errors."""
    return t_quantile_from_normal(NORMAL_95, degrees)


def t_tail_probability(t: float, degrees: float) -> float:
    """P(T > t) for t >= 0."""
    x = degrees / (degrees + t * t)
    return 0.5 * regularised_incomplete_beta(
        degrees / 2, 0.5, x, t * t / (degrees + t * t)
    )


def regularised_incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b); `rest` is 1 - x, a parameter so that it keeps its digits."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * beta_continued_fraction(a, b, x) / a
    return 1 - front * beta_continued_fraction(b, a, rest) / b


def beta_continued_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function (Lentz's method)."""
    c, d = 1.0, 1 / avoid_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, MAX_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / avoid_zero(1 + numerator * d)
            c = avoid_zero(1 + numerator / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def regularised_incomplete_gamma(a: float, x: float) -> tuple[float, float]:
    """(P(a, x), Q(a, x)): the regularised incomplete gamma functions."""
    if x <= 0:
        return 0.0, 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, 100 * MAX_STEPS):
            term *= x / (a + n)
            total += term
            if term < total * 1e-16:
                break
        return front * total, 1 - front * total
    b = x + 1 - a
    c, d = 1 / TINY, 1 / b
    fraction = d
    for n in range(1, 100 * MAX_STEPS):
        numerator = -n * (n - a)
        b += 2
        d = 1 / avoid_zero(numerator * d + b)
        c = avoid_zero(b + numerator / c)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 - front * fraction, front * fraction


def avoid_zero(value: float) -> float:
    """A divisor that is not 0 (Lentz's method)."""
    return value if abs(value) > TINY else TINY


def find_root_by_bisection(function: Callable[[float], float]) -> float:
    """The positive root of an increasing function, to the last bit."""
    low, high = 0.0, 1.0
    while function(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
