"""Arguments in, text out: options, the live screen, exit codes."""

from autoresearch.cli.app import main

__all__ = ["main"]
