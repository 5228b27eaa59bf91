"""Run untrusted code and prove that it is contained. Knows no lab and no model."""
