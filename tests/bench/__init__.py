"""Measurements: each against the barest thing that does the same job, in the same run."""
