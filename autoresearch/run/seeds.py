"""Which seed a run gets: the same for all candidates, fresh ones for a champion."""

import hashlib
from itertools import count

from autoresearch.records import queries
from autoresearch.records.ledger import Ledger


def compute_seed(base: int, run: int) -> int:
    """The seed of a candidate's n-th run: the same for all candidates of a series."""
    digest = hashlib.sha256(f"{base}:{run}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % 2**31


class ChampionSeeds:
    """Seeds that an experiment has not run with, in the order of all; none twice."""

    def __init__(self, ledger: Ledger, base: int) -> None:
        self._ledger, self._base = ledger, base
        self._given: dict[int, set[int]] = {}

    def draw(self, number: int) -> int:
        """The next fresh seed of this experiment."""
        given = self._given.setdefault(number, set())
        given |= queries.load_used_seeds(self._ledger, number)
        seed = next(
            s for n in count() if (s := compute_seed(self._base, n)) not in given
        )
        given.add(seed)
        return seed
