"""`mailbox`, `human:NAME`: proposes nothing itself; waits for `autoresearch try`.

What `try` queues stands in the ledger as a proposal without a verdict, and the loop
takes those before it asks any proposer. Naming this one keeps a night waiting for more.
"""

from autoresearch.experiment import Proposal
from autoresearch.records.ledger import Ledger


class QueueProposer:
    """Never exhausted: a proposal may be queued at any time."""

    exhausted = False

    def __init__(self, name: str = "mailbox") -> None:
        self.name = name

    def propose(self, ledger: Ledger) -> Proposal | None:
        """None: the loop takes queued proposals itself."""
        return None
