"""What happened: SQLite, hash chain, commits and results.tsv, kept in agreement."""
