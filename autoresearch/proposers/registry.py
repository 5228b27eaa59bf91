"""Which proposer a word of the grammar stands for. Plugins: autoresearch.proposers.

A plugin's entry point is callable as (what follows the colon, toolkit, seed) ->
Proposer; its name is the word before the colon.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoresearch import plugins
from autoresearch.errors import LabError
from autoresearch.lab.program import Program
from autoresearch.proposers import Proposer
from autoresearch.proposers.toolkit import Toolkit

GRAMMAR = (
    "search, mailbox, human:NAME, script:FILE, claude, codex, gemini, opencode, aider, "
    'cmd:"...", acp:"...", provider:model[@URL]'
)
AGENT_PATTERN = re.compile(r"claude|codex|gemini|opencode|aider|(?:cmd|acp):.+")
MODEL_PATTERN = re.compile(
    r"(?!script:|cmd:|acp:|human:)[a-z][a-z0-9_-]*:[^@\s]+(@https?://\S+)?"
)


def load_proposers(
    specs: Sequence[str],
    program: Program,
    folder: Path,
    seed: int,
    desk: Toolkit | None = None,
) -> Proposer:
    """The proposers that these words name; LabError for others.

    Several share the GPU by a bandit. Slow proposers run in the background; while they
    work or rest, the optimiser fills in.
    """
    from autoresearch.proposers.toolkit import open_toolkit

    desk = desk or open_toolkit(folder, program)
    found = [load_proposer(spec, program, desk, seed) for spec in dict.fromkeys(specs)]
    thinking = [proposer for proposer in found if is_slow(proposer.name)]
    if len(found) == 1 and not thinking:
        return found[0]
    from autoresearch.proposers.bandit import Bandit

    spare = load_stand_in(program, seed) if thinking and "search" not in specs else None
    return Bandit(
        found, seed, spare=spare, closing=partial(close_proposers, found, desk)
    )


@dataclass(frozen=True, slots=True)
class ProposerState:
    """Whether a proposer works, asked once before the night."""

    state: str  # `ok ...`, `limit until HH:MM`, or what is wrong and what to type
    waiting_seconds: float = 0.0  # at least, that the GPU waits for each of its ideas

    @property
    def is_ready(self) -> bool:
        """Whether it will propose without any action by the user."""
        return self.state.startswith(("ok", "limit until"))


def check_proposers(
    specs: Sequence[str], program: Program, folder: Path
) -> dict[str, ProposerState]:
    """The state of each proposer; LabError for one that cannot be loaded.

    Asks models and agents once, so it may take a minute and some money.
    """
    from autoresearch.proposers.llm import LLM
    from autoresearch.proposers.prefetch import Prefetch
    from autoresearch.proposers.toolkit import open_toolkit

    desk, found = open_toolkit(folder, program), {}
    for spec in dict.fromkeys(specs):
        proposer = load_proposer(spec, program, desk, seed=0)
        match proposer:
            case Prefetch(inner=thinker):
                found[spec] = ProposerState(thinker.check_ready())
            case LLM() as model:  # asked between two runs
                begun = time.monotonic()
                state = model.check_ready()
                found[spec] = ProposerState(state, time.monotonic() - begun)
            case _:
                found[spec] = ProposerState("ok")
    return found


def is_slow(spec: str) -> bool:
    """Whether this proposer takes seconds or minutes: a model or an agent."""
    return bool(AGENT_PATTERN.fullmatch(spec)) or is_model(spec)


def is_model(spec: str) -> bool:
    """Whether a word is `provider:model`, and not a plugin's name and its argument."""
    if not MODEL_PATTERN.fullmatch(spec):
        return False
    word = spec.partition(":")[0]
    if word not in plugins.plugin_names("proposers"):
        return True
    from autoresearch.proposers.llm_client import PROVIDERS

    return word in PROVIDERS  # a built-in name always wins


def load_stand_in(program: Program, seed: int) -> Proposer | None:
    """The optimiser, where it is installed."""
    from autoresearch.proposers.search import Search

    try:
        return Search(seed=seed, max_constants=program.max_constants)
    except LabError:
        return None


def close_proposers(proposers: Sequence[Proposer], desk: Toolkit) -> None:
    """Shut down background proposers."""
    from autoresearch.proposers.prefetch import Prefetch

    desk.stop_checks()
    for proposer in proposers:
        if isinstance(proposer, Prefetch):
            proposer.close()


def load_proposer(spec: str, program: Program, desk: Toolkit, seed: int) -> Proposer:
    """The proposer that one word names."""
    word, _, rest = spec.partition(":")
    if spec == "search":
        from autoresearch.proposers.search import Search

        return Search(seed=seed, max_constants=program.max_constants)
    if spec == "mailbox" or (word == "human" and rest):
        from autoresearch.proposers.queue import QueueProposer

        return QueueProposer(spec)
    if word == "script" and rest:
        from autoresearch.proposers.script import Script

        return Script.load(desk.lab.folder / rest)
    if AGENT_PATTERN.fullmatch(spec):
        from autoresearch.proposers.agents.process import Agent
        from autoresearch.proposers.prefetch import Prefetch

        # One at a time: two of one agent would share its HOME, and its database there.
        return Prefetch(Agent(spec, desk), desk, most=1)
    if is_model(spec):
        from autoresearch.proposers.llm import LLM
        from autoresearch.proposers.prefetch import Prefetch

        model = LLM(spec, desk)
        return model if model.shares_gpu else Prefetch(model, desk)
    if make := plugins.load_plugin("proposers", word):
        proposer: Proposer = make(rest, desk, seed)
        return proposer
    raise LabError(
        f"unknown proposer {spec!r}; the proposers are: {GRAMMAR}. Next: autoresearch "
        "check --proposer search   (or another of them)"
    )
