"""For `pytest --nbval`: a busy machine may be slow to hand over a cell's last output; nbval gives it five seconds."""


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 120
