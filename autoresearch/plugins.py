"""Plugins: members of a family from other packages, found by entry points.

    [project.entry-points."autoresearch.policies"]
    thompson = "my_package.policies:Thompson"

The families are proposers, policies, pools and sources; the registry of each room says
how its entry points are called. A built-in name always wins. Plugins are code that the
user installed: they run with the harness, not in the sandbox.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from autoresearch.errors import LabError

Family = Literal["proposers", "policies", "pools", "sources"]


def plugin_names(family: Family) -> tuple[str, ...]:
    """List the names that installed packages offer, sorted."""
    return tuple(sorted(find_entry_points(family)))


def load_plugin(family: Family, name: str) -> Any:
    """Load what an installed package offers under a name; None: nothing.

    Raises LabError when it cannot be imported.
    """
    point = find_entry_points(family).get(name)
    if point is None:
        return None
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise LabError(
            f"{family} {name!r}: the entry point {point.value!r} cannot be loaded "
            f"({error}). Next: install its package again, or name another"
        ) from None


def find_entry_points(family: Family) -> dict[str, EntryPoint]:
    """Find the entry points of a family, by name."""
    return {point.name: point for point in entry_points(group=f"autoresearch.{family}")}
