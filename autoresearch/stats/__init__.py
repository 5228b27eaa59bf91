"""How sure we are: noise, seed effects, posteriors, intervals. Pure functions."""
