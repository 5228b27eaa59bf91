"""Proposers: sources of ideas. Each is asked for one proposal at a time.

The same grammar names a proposer in program.md, on the command line, in the ledger, in
commit trailers and in the report: `search` | `mailbox` | `script:FILE` | an agent's
name | `provider:model[@URL]` | `cmd:"..."` | `acp:"..."` | `human:NAME`.
"""

from typing import Protocol

from autoresearch.experiment import Proposal
from autoresearch.records.ledger import Ledger


class Proposer(Protocol):
    """A source of proposals, based on the ledger."""

    @property
    def name(self) -> str:
        """In the proposer grammar."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether there will never be another proposal."""
        ...

    def propose(self, ledger: Ledger) -> Proposal | None:
        """One proposal; None when there is none just now."""
        ...
