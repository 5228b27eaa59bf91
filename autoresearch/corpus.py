"""What a lab's prepare.py imports: committed labs find the corpus under this name."""

from autoresearch.data.corpus import Recipe, Sealed, find, prepare, require

__all__ = ["Recipe", "Sealed", "find", "prepare", "require"]
