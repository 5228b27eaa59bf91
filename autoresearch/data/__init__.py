"""From a public text to sealed, tokenised splits; bits per byte."""
