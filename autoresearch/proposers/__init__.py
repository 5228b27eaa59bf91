"""Proposers: whoever has ideas. Each is asked for one proposal at a time.

The same grammar names a proposer in program.md, on the command line, in the ledger, in
commit trailers and in the report: `search` | `mailbox` | `script:FILE` | an agent's
name | `provider:model[@URL]` | `cmd:"..."` | `acp:"..."` | `human:NAME`.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autoresearch.errors import LabError
from autoresearch.experiment import Proposal
from autoresearch.ledger import Ledger
from autoresearch.program import Program

if TYPE_CHECKING:
    from autoresearch.proposers.desk import Desk

GRAMMAR = (
    "search, mailbox, human:NAME, script:FILE, claude, codex, gemini, opencode, aider, "
    'cmd:"...", acp:"...", provider:model[@URL]'
)
AGENT = re.compile(r"claude|codex|gemini|opencode|aider|(?:cmd|acp):.+")
MODEL = re.compile(
    r"(?!script:|cmd:|acp:|human:)[a-z][a-z0-9_-]*:[^@\s]+(@https?://\S+)?"
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


def named(
    specs: Sequence[str],
    program: Program,
    folder: Path,
    seed: int,
    desk: "Desk | None" = None,
) -> Proposer:
    """The proposers that these words name; LabError for others.

    Several share the GPU by a bandit. Who takes long thinks in the background, and
    while it does, or rests, the optimiser stands in.
    """
    from autoresearch.proposers.desk import desk_of

    desk = desk or desk_of(folder, program)
    found = [one(spec, program, desk, seed) for spec in dict.fromkeys(specs)]
    thinking = [proposer for proposer in found if slow(proposer.name)]
    if len(found) == 1 and not thinking:
        return found[0]
    from autoresearch.proposers.hybrid import Hybrid

    spare = standing_in(program, seed) if thinking and "search" not in specs else None
    return Hybrid(found, seed, spare=spare, closing=partial(dismiss, found, desk))


@dataclass(frozen=True, slots=True)
class Examined:
    """How a proposer does, asked once before the night."""

    state: str  # `ok ...`, `limit until HH:MM`, or what is wrong and what to type
    waiting_seconds: float = 0.0  # at least, that the GPU waits for each of its ideas

    @property
    def ready(self) -> bool:
        """Whether the night will hear of it without anybody doing anything."""
        return self.state.startswith(("ok", "limit until"))


def examined(
    specs: Sequence[str], program: Program, folder: Path
) -> dict[str, Examined]:
    """Each proposer and how it does; LabError for one that cannot be.

    Asks models and agents once, so it may take a minute and some money.
    """
    from autoresearch.proposers.ahead import Ahead
    from autoresearch.proposers.desk import desk_of
    from autoresearch.proposers.llm import LLM

    desk, found = desk_of(folder, program), {}
    for spec in dict.fromkeys(specs):
        proposer = one(spec, program, desk, seed=0)
        match proposer:
            case Ahead(inner=thinker):
                found[spec] = Examined(thinker.examine())
            case LLM() as model:  # asked between two runs
                begun = time.monotonic()
                state = model.examine()
                found[spec] = Examined(state, time.monotonic() - begun)
            case _:
                found[spec] = Examined("ok")
    return found


def slow(spec: str) -> bool:
    """Whether this proposer thinks, which takes a while."""
    return bool(AGENT.fullmatch(spec) or MODEL.fullmatch(spec))


def standing_in(program: Program, seed: int) -> Proposer | None:
    """The optimiser, where it is installed."""
    from autoresearch.proposers.search import Search

    try:
        return Search(seed=seed, max_constants=program.max_constants)
    except LabError:
        return None


def dismiss(proposers: Sequence[Proposer], desk: "Desk") -> None:
    """The night is over: nobody thinks on."""
    from autoresearch.proposers.ahead import Ahead

    desk.closing()
    for proposer in proposers:
        if isinstance(proposer, Ahead):
            proposer.close()


def one(spec: str, program: Program, desk: "Desk", seed: int) -> Proposer:
    """The proposer that one word names."""
    word, _, rest = spec.partition(":")
    if spec == "search":
        from autoresearch.proposers.search import Search

        return Search(seed=seed, max_constants=program.max_constants)
    if spec == "mailbox" or (word == "human" and rest):
        from autoresearch.proposers.mailbox import Mailbox

        return Mailbox(spec)
    if word == "script" and rest:
        from autoresearch.proposers.script import Script

        return Script.read(desk.lab.folder / rest)
    if AGENT.fullmatch(spec):
        from autoresearch.proposers.agent import Agent
        from autoresearch.proposers.ahead import Ahead

        # One at a time: two of one agent would share its HOME, and its database there.
        return Ahead(Agent(spec, desk), desk, most=1)
    if MODEL.fullmatch(spec):
        from autoresearch.proposers.ahead import Ahead
        from autoresearch.proposers.llm import LLM

        model = LLM(spec, desk)
        return model if model.shares_the_gpu else Ahead(model, desk)
    raise LabError(
        f"unknown proposer {spec!r}; the proposers are: {GRAMMAR}. Next: autoresearch "
        "check --proposer search   (or another of them)"
    )
