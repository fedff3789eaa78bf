"""For `pytest --nbval`: a busy machine may be slow to hand over a cell's last output; nbval gives it five seconds.

Tests run as several processes, one a core: so each kernel has one thread.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
