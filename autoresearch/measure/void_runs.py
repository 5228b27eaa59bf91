"""Which slow runs are void: the machine caused it, not the candidate."""

from collections.abc import Sequence

MIN_RUNS = 3  # of the champion, before there is a usual range


def find_void_reason(
    harmed: str | None, tokens_per_second: float, usual: Sequence[float]
) -> str | None:
    """Return why a run does not count, or None.

    harmed: what slowed the GPU down, from `devices.monitor`. usual: tokens per second
    of earlier runs of the champion here. A run is void only if it was slow and the
    machine was at fault: a slow candidate alone, or heat alone, is no reason.
    """
    if len(usual) < MIN_RUNS or tokens_per_second >= min(usual):
        return None
    return harmed
