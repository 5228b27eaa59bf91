"""A policy that passes most questions on to another one.

Promises: whatever it has no rule for is answered by `policy`, and it is a value: equal
parts make equal policies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoresearch.experiment import (
    Champion,
    CodeSizeChange,
    History,
    Row,
    Scores,
    Verdict,
)
from autoresearch.policies import NextRun, Policy
from autoresearch.policies.noise_aware import compute_noise_unit
from autoresearch.stats.posterior import Posteriors, compute_posteriors

NextRunRule = Callable[[Scores, History], NextRun | None]  # None: ask the policy
ParentRule = Callable[[History, Sequence[Row]], str | None]  # None: the champion


@dataclass(frozen=True, slots=True)
class OverridePolicy:
    """Another policy, with its own rule for the next run or for the parent."""

    policy: Policy
    next_run_rule: NextRunRule | None = None  # None: as the policy
    parent_rule: ParentRule | None = None  # None: as the policy

    def choose_next_run(self, scores: Scores, history: History) -> NextRun:
        """By the rule, if there is one and it has an answer."""
        chosen = self.next_run_rule and self.next_run_rule(scores, history)
        return chosen or self.policy.choose_next_run(scores, history)

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """As the policy."""
        return self.policy.decide(scores, history, change)

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """As the policy."""
        return self.policy.find_champion_to_restore(history)

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """As the policy."""
        return self.policy.choose_closing_run(history, left)

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """By the rule, if there is one."""
        choose = self.parent_rule or self.policy.choose_parent
        return choose(history, rows)


@dataclass(frozen=True, slots=True)
class PosteriorParentRule:
    """A parent chosen by the posterior means of all candidates."""

    lower_is_better: bool
    choose: Callable[[Sequence[Row], Posteriors], str | None]

    def __call__(self, history: History, rows: Sequence[Row]) -> str | None:
        """The blob to start from; None, the champion, while the noise is unknown."""
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        return self.choose(rows, compute_posteriors(rows, unit)) if unit else None
