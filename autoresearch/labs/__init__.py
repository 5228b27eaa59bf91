"""Labs that `autoresearch new` copies: gpt (the flagship) and line (0.1 s, no torch)."""
