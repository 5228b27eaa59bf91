"""From the ledger to text, HTML and JSON. Reads only."""
