"""The name under which a lab's committed prepare.py imports the corpus."""

from autoresearch.data.corpus import Recipe, Sealed, find, prepare, require

__all__ = ["Recipe", "Sealed", "find", "prepare", "require"]
