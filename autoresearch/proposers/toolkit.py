"""What models and agents share: program.md, the context, a cost budget, the checks.

Promises: one answer ends in one proposal, usable or not; what is wrong with an answer
is known before anything trains, and can be sent back. Not covered: how the answer is
obtained (`llm`, `agents.process`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.errors import LabError
from autoresearch.experiment import Proposal
from autoresearch.lab import program, reply_parser
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.proposers import agent_guide, context
from autoresearch.records import admission
from autoresearch.records.ledger import Ledger, ProposerCall
from autoresearch.text import to_one_line

ProposalCheck = Callable[
    [Proposal], str
]  # what is wrong with a proposal; "" when nothing is
MAX_TRANSCRIPT_BYTES = 4 << 20


def accept_all(proposal: Proposal) -> str:
    """Accept every proposal."""
    return ""


def ignore_notice(words: str) -> None:
    """Discard a message."""


def do_nothing() -> None:
    """Stop nothing: there are no checks."""


class CostBudget:
    """What a night may spend on calls; shared by its proposers and their threads."""

    def __init__(self, dollars: float, tokens: int = 50_000_000) -> None:
        self.limit_dollars = dollars
        self.limit_tokens = tokens
        self.spent_dollars = 0.0
        self.spent_tokens = 0
        self._reserved_dollars = 0.0  # of calls under way, each at the most it can cost
        self._lock = threading.Lock()

    @property
    def is_spent(self) -> bool:
        """Whether the tokens are used up, or the dollars where there is a limit.

        Without one (0), only callers of `reserve_dollars` are limited.
        """
        used_up = 0 < self.limit_dollars <= self.spent_dollars
        return used_up or self.spent_tokens >= self.limit_tokens

    @property
    def has_reservations(self) -> bool:
        """Whether calls are under way that may cost less than was reserved."""
        return self._reserved_dollars > 0

    def reserve_dollars(self, dollars: float | None) -> bool:
        """Reserve the most that a call may cost, if it fits. None: unknown."""
        with self._lock:
            if self.spent_tokens >= self.limit_tokens:
                return False
            if dollars is None:
                return True
            if (
                self.spent_dollars + self._reserved_dollars + dollars
                > self.limit_dollars
            ):
                return False
            self._reserved_dollars += dollars
            return True

    def release_dollars(self, dollars: float) -> None:
        """Release a reservation, after `charge`."""
        with self._lock:
            self._reserved_dollars = max(0.0, self._reserved_dollars - dollars)

    def charge(self, dollars: float | None, tokens: int, at_most: float = 0.0) -> None:
        """Count what a call cost; `at_most` where that is unknown."""
        with self._lock:
            self.spent_tokens += tokens
            self.spent_dollars += at_most if dollars is None else dollars


@dataclass(slots=True)
class Toolkit:
    """Shared by the proposers of one night."""

    lab: Lab
    budget: CostBudget
    check_proposal: ProposalCheck = (
        accept_all  # replaced by `preflight` where a night is on
    )
    notify: Callable[[str], None] = ignore_notice  # tells the human something
    stop_checks: Callable[[], None] = do_nothing  # ends `check`, with the night
    last_valid_program: Program = field(default_factory=Program)
    pending_titles: set[str] = field(
        default_factory=set
    )  # titles being written or queued

    def load_program(self) -> tuple[Program, str]:
        """(program.md parsed, its text); the last valid one if it cannot be parsed."""
        try:
            text = self.lab.read_file("program.md")
            self.last_valid_program = program.parse_program(text)
        except LabError:
            text = self.last_valid_program.prose
        return self.last_valid_program, text

    def build_request(self, ledger: Ledger) -> context.ContextRequest:
        """The request that the context is built from."""
        settings, text = self.load_program()
        titles = {p.title for p in ledger.load_open_proposals()} | set(
            self.pending_titles
        )
        return context.ContextRequest(
            text,
            self.metric,
            agent_guide.describe_limits(settings),
            pending_titles=tuple(sorted(titles)),
        )

    @property
    def metric(self) -> str:
        """What the lab measures, read without running prepare.py."""
        for line in self.lab.read_file("prepare.py").splitlines():
            if line.startswith("METRIC"):
                return to_one_line(line.partition("=")[2].partition("#")[0]).strip(
                    "\"' "
                )
        return "the score"

    def find_fault(self, ledger: Ledger, proposal: Proposal) -> str:
        """What is wrong with a proposal, before anything trains; "" when nothing is."""
        return self.find_quick_fault(ledger, proposal) or self.check_proposal(proposal)

    def find_quick_fault(self, ledger: Ledger, proposal: Proposal) -> str:
        """The same without running anything of it."""
        settings, _ = self.load_program()
        rejection = admission.find_rejection(ledger, proposal, settings)
        return "" if rejection is None else rejection.detail

    def record_call(
        self, ledger: Ledger, asking: ProposerCall, at_most: float = 0.0
    ) -> None:
        """Record a call and charge its cost.

        `at_most`: what it may have cost, where that is unknown but bounded.
        """
        tokens = (asking.tokens_in or 0) + (asking.tokens_out or 0)
        before = self.budget.is_spent
        self.budget.charge(asking.dollars, tokens, at_most)
        ledger.record_proposer_call(asking)
        if self.budget.is_spent and not before:
            self.notify("what this night may spend is spent; only free proposers go on")
        if not asking.outcome.startswith(("proposed", "refused")):
            self.notify(f"{asking.author}: {asking.outcome[:160]}; others go on")

    def save_transcript(self, words: bytes, suffix: str = "json") -> str:
        """Save a transcript, cut at MAX_TRANSCRIPT_BYTES; returns the file name."""
        folder = self.lab.state_folder / "asked"
        folder.mkdir(exist_ok=True)
        name = f"{time.time_ns()}-{threading.get_ident() % 10_000}.{suffix}"
        (folder / name).write_bytes(words[:MAX_TRANSCRIPT_BYTES])
        return name


def open_toolkit(folder: Path, settings: Program) -> Toolkit:
    """The toolkit of one night in a lab."""
    return Toolkit(
        Lab(folder), CostBudget(settings.dollars), last_valid_program=settings
    )


def proposal_from_reply(
    reply: str, author: str, blob: str, source: str
) -> tuple[Proposal, str]:
    """(a reply as a proposal on the champion, what is wrong with it or "").

    A reply that cannot be used is a proposal that changes nothing, so that it too ends
    in a verdict.
    """
    try:
        answer, new = reply_parser.apply_reply(reply, source)
    except reply_parser.ReplyRejected as refused:
        title = to_one_line(find_title(reply))[:120] or "an answer without an edit"
        return Proposal(None, title, source, blob, author), str(refused)
    reason = answer.reason
    if answer.expected is not None:
        reason = f"{reason} (expects {answer.expected:+g})".strip()
    return Proposal(None, answer.title, new, blob, author, reason), ""


def find_title(reply: str) -> str:
    """The title in a reply that cannot be parsed."""
    for line in reply[:20_000].splitlines():
        if (head := reply_parser.HEAD.match(line)) and head[1].upper() == "TITLE":
            return head[2]
    return ""
