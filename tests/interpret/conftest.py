"""The explorer's page in Chromium, without network.

Needs the group `browser` (uv sync --group browser) and a Chromium: where CHROMIUM points, /usr/bin/chromium, or the one
that `playwright install chromium` fetches.
"""

import os
import warnings
from pathlib import Path

import pytest

CAMERA = "--use-fake-device-for-media-stream"  # shows a test pattern


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: uv sync --group browser")
    path = os.environ.get("CHROMIUM") or next((str(p) for p in [Path("/usr/bin/chromium")] if p.exists()), None)
    with warnings.catch_warnings(), playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", CAMERA])
        except playwright.Error as problem:
            pytest.skip(f"no Chromium to test with (set CHROMIUM to its path): {str(problem).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens an explorer without network; afterwards there must have been no error in its console."""
    from titn_lib.interpret.explorer import page_html  # after tests/conftest.py has installed the checks of shapes

    problems, contexts = [], []

    def open_page(data, width=1280, height=900, dark=False, text=None, **options):
        size, scheme = {"width": width, "height": height}, "dark" if dark else "light"
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(text or page_html(data))
        page.goto(file.as_uri())
        if text is None:
            page.wait_for_selector("#explorer[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for problem in problems if "ERR_INTERNET_DISCONNECTED" not in problem] == []
