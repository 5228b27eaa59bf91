"""The seed of each run: the same for all candidates, fresh ones for a champion."""

import hashlib
from itertools import count

from autoresearch.records import queries
from autoresearch.records.ledger import Ledger


def compute_seed(base: int, run: int) -> int:
    """The seed of a candidate's n-th run, the same for all candidates of a series.

    base: the session's seed. run: counted from 0.
    """
    digest = hashlib.sha256(f"{base}:{run}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % 2**31


class ChampionSeeds:
    """Draws seeds that an experiment has not run with, in seed order; none twice."""

    def __init__(self, ledger: Ledger, base: int) -> None:
        self._ledger, self._base = ledger, base
        self._drawn: dict[int, set[int]] = {}  # by experiment, used ones included

    def draw(self, number: int) -> int:
        """Draw the next fresh seed of this experiment."""
        drawn = self._drawn.setdefault(number, set())
        drawn |= queries.load_used_seeds(self._ledger, number)
        seeds = (compute_seed(self._base, run) for run in count())
        seed = next(seed for seed in seeds if seed not in drawn)
        drawn.add(seed)
        return seed
