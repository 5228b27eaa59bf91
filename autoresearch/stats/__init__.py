"""Statistics of scores: noise, seed effects, posteriors, intervals, early stopping."""
