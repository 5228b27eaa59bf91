"""`mailbox`, `human:NAME`: has no ideas of its own, and waits for `autoresearch try`.

What `try` queues stands in the ledger as a proposal without a verdict, and the loop
takes those before it asks any proposer. Naming this one keeps a night waiting for more.
"""

from autoresearch.experiment import Proposal
from autoresearch.records.ledger import Ledger


class QueueProposer:
    """Never exhausted: the next letter may come at any time."""

    exhausted = False

    def __init__(self, name: str = "mailbox") -> None:
        self.name = name

    def propose(self, ledger: Ledger) -> Proposal | None:
        """Nothing; the loop reads the letters itself."""
        return None
