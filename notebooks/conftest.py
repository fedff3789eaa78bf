"""Settings for `pytest --nbval`.

On a busy machine a cell's last output may take longer than the five seconds that nbval waits, so the timeout is raised.
Tests run in one process per core, so each kernel gets one thread.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
