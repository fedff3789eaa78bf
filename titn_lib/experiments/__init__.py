"""Experiments: runs from settings files with several seeds, and reports of their records."""
