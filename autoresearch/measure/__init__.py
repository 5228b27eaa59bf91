"""Candidate -> run -> score: training, evaluation, audit, calibration."""
