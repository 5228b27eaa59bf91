"""The name under which a lab's committed prepare.py imports `main`."""

from autoresearch.commands.score import main

__all__ = ["main"]
