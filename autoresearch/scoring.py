"""What a lab's prepare.py imports: committed labs find `main` under this name."""

from autoresearch.commands.score import main

__all__ = ["main"]
