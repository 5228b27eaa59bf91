"""Coding agents as proposers: which there are, how they run, what they cost."""
