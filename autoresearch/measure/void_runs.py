"""When a slow run was the machine's fault, and is void."""

from collections.abc import Sequence

MIN_RUNS = 3  # before a machine has a range of its own


def find_void_reason(
    harmed: str | None, tokens_per_second: float, usual: Sequence[float]
) -> str | None:
    """Why a run does not count, or None.

    usual: tokens per second of earlier runs of its champion here. Slow alone is the
    candidate's business, heat alone nobody's: both must come together.
    """
    if len(usual) < MIN_RUNS or tokens_per_second >= min(usual):
        return None
    return harmed
