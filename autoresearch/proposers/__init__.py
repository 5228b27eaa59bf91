"""Proposers: whoever has ideas. Each is asked for one proposal at a time.

The same grammar names a proposer in program.md, on the command line, in the ledger, in
commit trailers and in the report: `search` | `mailbox` | `script:FILE` | an agent's
name | `provider:model[@URL]` | `cmd:"..."` | `human:NAME`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autoresearch.errors import LabError
from autoresearch.experiment import Proposal
from autoresearch.ledger import Ledger
from autoresearch.program import Program

if TYPE_CHECKING:
    from autoresearch.proposers.desk import Desk

GRAMMAR = (
    "search, mailbox, script:FILE, claude, codex, gemini, opencode, aider, "
    'cmd:"...", provider:model[@URL]'
)
AGENT = re.compile(r"claude|codex|gemini|opencode|aider|cmd:.+")
MODEL = re.compile(r"(?!script:|cmd:|human:)[a-z][a-z0-9_-]*:[^@\s]+(@https?://\S+)?")
# Part of the grammar, so that a program.md written for them is not called a typo.
LATER = re.compile(
    r"(claude|codex|gemini|opencode|aider)|cmd:.+|human:.+|[a-z][a-z0-9_-]*:[^@]+(@.+)?"
)


class Proposer(Protocol):
    """Has ideas, from what the ledger shows."""

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


@dataclass(slots=True)
class Turns:
    """Several proposers, one after the other; who has no idea is passed over."""

    proposers: Sequence[Proposer]
    turn: int = 0

    @property
    def name(self) -> str:
        """All their names."""
        return ", ".join(proposer.name for proposer in self.proposers)

    @property
    def exhausted(self) -> bool:
        """Whether all of them are."""
        return all(proposer.exhausted for proposer in self.proposers)

    def propose(self, ledger: Ledger) -> Proposal | None:
        """The next one's proposal."""
        for _ in self.proposers:
            proposer = self.proposers[self.turn % len(self.proposers)]
            self.turn += 1
            if proposal := proposer.propose(ledger):
                return proposal
        return None


def named(specs: Sequence[str], program: Program, folder: Path, seed: int) -> Proposer:
    """The proposers that these words name, taking turns; LabError for others."""
    from autoresearch.proposers.desk import desk_of

    desk = desk_of(folder, program)
    return Turns([one(spec, program, desk, seed) for spec in specs])


def one(spec: str, program: Program, desk: "Desk", seed: int) -> Proposer:
    """The proposer that one word names."""
    word, _, rest = spec.partition(":")
    if spec == "search":
        from autoresearch.proposers.search import Search

        return Search(seed=seed, max_constants=program.max_constants)
    if spec == "mailbox":
        from autoresearch.proposers.mailbox import Mailbox

        return Mailbox()
    if word == "script" and rest:
        from autoresearch.proposers.script import Script

        return Script.read(desk.lab.folder / rest)
    if AGENT.fullmatch(spec):
        from autoresearch.proposers.agent import Agent

        return Agent(spec, desk)
    if MODEL.fullmatch(spec):
        from autoresearch.proposers.llm import LLM

        return LLM(spec, desk)
    if LATER.fullmatch(spec):
        raise LabError(
            f"proposer {spec!r} is not built yet; today's are: {GRAMMAR}. "
            'Next: proposers = ["search"] in program.md'
        )
    raise LabError(f"unknown proposer {spec!r}; the proposers are: {GRAMMAR}")
