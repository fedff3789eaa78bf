"""Sweeps of runs from settings files, and reports on their records."""
