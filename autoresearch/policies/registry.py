"""Policies by name. Plugins: entry points autoresearch.policies (see `plugins`)."""

from collections.abc import Callable

from autoresearch import plugins
from autoresearch.errors import LabError
from autoresearch.policies import Policy
from autoresearch.policies.anneal import create_anneal_policy
from autoresearch.policies.greedy import GreedyPolicy
from autoresearch.policies.islands import create_islands_policy
from autoresearch.policies.noise_aware import NoiseAwarePolicy

# (lower_is_better, gain_per_20_added_lines) -> Policy; also a plugin's entry point.
POLICIES: dict[str, Callable[[bool, float], Policy]] = {
    "greedy": GreedyPolicy,
    "noise-aware": NoiseAwarePolicy,
    "anneal": create_anneal_policy,
    "islands": create_islands_policy,
}


def load_policy(
    name: str, *, lower_is_better: bool, gain_per_20_added_lines: float
) -> Policy:
    """The policy that program.md names; raises LabError for an unknown name."""
    make = POLICIES.get(name) or plugins.load_plugin("policies", name)
    if make is None:
        known = ", ".join((*POLICIES, *plugins.plugin_names("policies")))
        raise LabError(f"unknown policy {name!r}; the policies are: {known}")
    policy: Policy = make(lower_is_better, gain_per_20_added_lines)
    return policy
