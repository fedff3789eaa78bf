"""The explorer in a real browser, without network: what is on the screen is what the model did.

Needs the group `browser` (uv sync --group browser) and a Chromium: where CHROMIUM points, /usr/bin/chromium, or the one
that `playwright install chromium` fetches.
"""

import os
import warnings
from pathlib import Path
from statistics import median

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from titn_lib import create_model, interpret
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.interpret import explorer
from titn_lib.plots import palette

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: uv sync --group browser")

PREPROCESSING = Preprocessing("x", ("cat", "dog", "ship", "frog"), (0.4,) * 3, (0.3,) * 3)
COLUMNS, PATCHES = 4, 16  # of titn_paper on 32×32 images


def make(name="titn_paper", **settings):
    """A student whose attention is far from even."""
    model = create_model(name, num_classes=4, **{"depth": 3, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.preprocessing = PREPROCESSING
    return model.eval()


@pytest.fixture(scope="module")
def scene():
    """A student, its images, its attention and what the explorer shows of them."""
    torch.manual_seed(0)
    model, images = make(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    floats = normalize(images, PREPROCESSING.mean, PREPROCESSING.std)
    return (
        model,
        images,
        floats,
        interpret.attention(model, floats),
        explorer.explorer_data(model, images, labels=[2, 0]),
    )


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next((str(p) for p in [Path("/usr/bin/chromium")] if p.exists()), None)
    with warnings.catch_warnings(), playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as problem:
            pytest.skip(f"no Chromium to test with (set CHROMIUM to its path): {str(problem).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens an explorer without network; afterwards there must have been no error in its console."""
    problems, contexts = [], []

    def open_page(data, width=1280, dark=False, text=None):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(text or explorer.page_html(data))
        page.goto(file.as_uri())
        if text is None:
            page.wait_for_selector("#explorer[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for problem in problems if "ERR_INTERNET_DISCONNECTED" not in problem] == []


def canvas(page, stream="outer", stage=0):
    return page.locator(".stage").nth(stage).locator(f".{stream} > canvas")


def settle(page):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def slide(page, label, value, stream=None):
    place = page.locator(f".stream.{stream} input[type=range]" if stream else f"input[aria-label={label}]").first
    place.fill(str(value))
    settle(page)


def levels(page, stream="outer", rows=4, columns=4, stage=0):
    """What the colors mean: each cell's level in the palette, 0–255. The map must cover the image."""
    script = """(canvas, [rows, columns]) => {
      const context = canvas.getContext("2d"), colors = [];
      for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
        const x = ((column + 0.2) * canvas.width) / columns, y = ((row + 0.2) * canvas.height) / rows;
        colors.push([...context.getImageData(x, y, 1, 1).data.slice(0, 3)]);
      }
      return colors;
    }"""
    colors = np.array(canvas(page, stream, stage).evaluate(script, [rows, columns]))
    table = np.frombuffer(palette(), np.uint8).reshape(256, 3).astype(int)
    distance = np.abs(colors[:, None] - table).sum(axis=2)
    assert distance.min(axis=1).max() <= 3, "a color that is not in the palette"
    return distance.argmin(axis=1)


def agree(page, wanted, highest=None, stream="outer", stage=0):
    """The canvas shows these values, in their order."""
    values = np.asarray(wanted.detach())
    side = round(len(values) ** 0.5)
    expected = 255 * values / float(values.max() if highest is None else highest)
    np.testing.assert_allclose(levels(page, stream, side, side, stage), expected, atol=4)


def cover(page):
    slide(page, "opacity", 10)


def hover(page, token, stream="outer", columns=COLUMNS):
    """Move the pointer to a patch or pixel, counted from 0."""
    box = canvas(page, stream).bounding_box()
    size = box["width"] / columns
    page.mouse.move(box["x"] + (token % columns + 0.5) * size, box["y"] + (token // columns + 0.5) * size)
    settle(page)


def summary(page, stage=0):
    return page.locator(".summary").nth(stage).inner_text().replace("\u00a0", " ")


# --- the outer stream


def test_at_first_the_class_token(show, scene):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    row = attention.outer[2][0].mean(dim=0)[0]
    agree(page, row[1:17], row.max())
    best = int(row.argmax())
    named = {0: "itself", 17: "the distillation token"}.get(best, f"patch {best}")
    assert summary(page).startswith(f"Block 3, mean of heads: the class token attends most to {named} (")
    share = float(page.locator(".token b").first.inner_text().replace("\u00a0%", ""))
    assert share == pytest.approx(100 * float(row[0]), abs=0.6)


@pytest.mark.parametrize("reverse", [False, True])
def test_hovering_shows_a_patchs_row_or_column(show, scene, reverse):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    if reverse:
        page.get_by_role("button", name="is attended to by").click()
    matrix = attention.outer[2][0].mean(dim=0)
    for patch in (0, 6, 13):
        hover(page, patch)
        values = matrix[:, 1 + patch] if reverse else matrix[1 + patch]
        agree(page, values[1:17], values.max())
        best = int(values.argmax())
        named = {1 + patch: "itself", 0: "the class token", 17: "the distillation token"}.get(best, f"patch {best}")
        verb = "is attended to most by" if reverse else "attends most to"
        assert f"patch {patch + 1} {verb} {named} (" in summary(page)
    page.mouse.move(5, 5)
    settle(page)
    assert "the class token" in summary(page).split("most")[0]


def test_blocks_and_heads_by_slider(show, scene):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    for block in (1, 2, 3):
        slide(page, "block", block - 1)
        for head, name in ((0, "mean"), (1, "max"), (2, "1 of 8"), (9, "8 of 8")):
            slide(page, "head", head, "outer")
            maps = attention.outer[block - 1][0, :, 0]
            row = maps.mean(dim=0) if head == 0 else maps.amax(dim=0) if head == 1 else maps[head - 2]
            agree(page, row[1:17], row.max())
            assert page.locator(".stream.outer output").inner_text() == name
            assert summary(page).startswith(f"Block {block}, ")


def test_rollout_and_relevance(show, scene):
    model, _, floats, attention, data = scene
    page = show(data)
    cover(page)
    page.get_by_role("button", name="rollout").click()
    for block in (1, 2):
        slide(page, "block", block)
        row = interpret.rollout(attention.outer[: block + 1])[0, 0]
        agree(page, row[1:17], row.max())
    page.get_by_role("button", name="relevance").click()
    for head, button in (("class", "class head"), ("distillation", "distillation head")):
        page.get_by_role("button", name=button).click()
        for weighted, name in ((False, "for any class"), (True, "for the predicted class")):
            page.get_by_role("button", name=name).click()
            settle(page)
            classes = interpret.head_logits_fn(model, head)(floats[:1]).argmax(dim=-1) if weighted else None
            cells = interpret.cells(interpret.relevance(model, floats[:1], head, classes).image, 2)[0]
            agree(page, cells, cells.max())
            assert f"The {head} head predicts" in summary(page)


def test_small_maps_choose_block_and_head(show, scene):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    small = page.locator(".stream.outer figure canvas")
    place = page.evaluate("() => document.querySelector('#explorer').explorer.stages[0].planned.outer.layout")
    step = {"x": place["tile"] + 4, "y": place["high"] + 4}
    small.click(position={"x": place["left"] + 1.5 * step["x"], "y": place["top"] + 4.5 * step["y"]})
    settle(page)
    row = attention.outer[1][0, 4, 0]
    agree(page, row[1:17], row.max())
    assert summary(page).startswith("Block 2, head 5: ")
    # and what the small map itself shows: head 7 of block 3
    maps = torch.stack([one[0, :, 0, 1:17] for one in attention.outer])
    dense = page.evaluate("() => devicePixelRatio")
    for patch in (0, 7, 15):
        x = place["left"] + 2 * step["x"] + (patch % 4 + 0.5) * place["tile"] / 4
        y = place["top"] + 6 * step["y"] + (patch // 4 + 0.5) * place["high"] / 4
        script = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
        color = small.evaluate(script, [round(x * dense), round(y * dense)])
        expected = round(255 * float(maps[2, 6, patch] / maps.max()))
        assert np.abs(np.array(color) - np.array(list(data["palette"][3 * expected : 3 * expected + 3]))).max() < 6


# --- the inner stream


def test_a_click_opens_a_patch_and_hovering_shows_its_pixels(show, scene):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    for patch in (9, 2):
        hover(page, patch)
        page.mouse.down()
        page.mouse.up()
        settle(page)
        inner = attention.inner[2][0, patch].mean(dim=0)
        mean = inner.mean(dim=0)
        assert f"patch {patch + 1}, all pixel tokens" in page.locator(".stream.inner").inner_text()
        agree(page, mean, stream="inner")
        for pixel in (0, 11):
            hover(page, pixel, "inner")
            agree(page, inner[pixel], stream="inner")
            best = int(inner[pixel].argmax())
            named = "itself" if best == pixel else f"pixel token {best + 1}"
            assert f"pixel token {pixel + 1} of patch {patch + 1} attends most to {named} (" in summary(page)
    slide(page, "head", 3, "inner")
    page.mouse.move(5, 5)
    slide(page, "block", 0)
    agree(page, attention.inner[0][0, 2, 1].mean(dim=0), stream="inner")
    page.get_by_role("button", name="Close the patch").click()
    settle(page)
    assert "click a patch to open it" in page.locator(".stream.inner").inner_text()


def test_a_vit_has_no_inner_stream(show):
    model = make("vit_paper")
    page = show(explorer.explorer_data(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    hover(page, 5)
    page.mouse.down()
    page.mouse.up()
    settle(page)
    assert "a ViT has no inner stream" in page.locator(".stream.inner").inner_text()
    page.get_by_role("button", name="relevance").click()
    settle(page)
    assert "The class head predicts" in summary(page)


# --- keys, images, two models


def test_keys(show, scene):
    _, _, _, attention, data = scene
    page = show(data)
    cover(page)
    state = "() => { const { state } = document.querySelector('#explorer').explorer; return state; }"
    canvas(page).focus()
    assert canvas(page).evaluate("(one) => getComputedStyle(one).outlineStyle") != "none"
    for key, token in (("ArrowDown", 1), ("ArrowRight", 2), ("ArrowDown", 6), ("ArrowLeft", 5), ("ArrowLeft", 5),
                       ("ArrowUp", 1), ("ArrowUp", 0), ("ArrowRight", 17), ("ArrowDown", 4)):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate(state)["token"] == token, key
    settle(page)
    row = attention.outer[2][0].mean(dim=0)[4]
    agree(page, row[1:17], row.max())
    page.keyboard.press("[")
    page.keyboard.press(".")
    page.keyboard.press(".")
    settle(page)
    assert summary(page).startswith("Block 2, head 1: patch 4 attends most to")
    page.keyboard.press("t")
    settle(page)
    assert "is attended to most by" in summary(page)
    page.keyboard.press("t")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate(state)["open"] == 3
    assert canvas(page, "inner").evaluate("(one) => one === document.activeElement")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    settle(page)
    assert summary(page).startswith("Block 2, mean of heads: pixel token 6 of patch 4 attends most to")
    page.keyboard.press("Escape")
    settle(page)
    assert page.evaluate(state)["open"] is None
    assert canvas(page).evaluate("(one) => one === document.activeElement")
    page.keyboard.press("m")
    settle(page)
    assert page.get_by_role("button", name="rollout").get_attribute("aria-pressed") == "true"


def test_another_image_and_its_predictions(show, scene):
    model, _, floats, attention, data = scene
    page = show(data)
    cover(page)
    page.get_by_role("button", name="image 2").click()
    settle(page)
    row = attention.outer[2][1].mean(dim=0)[0]
    agree(page, row[1:17], row.max())
    shares = interpret.head_logits_fn(model, "distillation")(floats)[1].softmax(dim=-1)
    lines = page.locator(".predictions > div").nth(1).locator("li").all_inner_texts()
    assert lines[0].startswith(PREPROCESSING.classes[int(shares.argmax())])
    assert next(line for line in lines if "✓" in line).startswith("cat")
    assert page.locator(".upload").count() == 0  # no kernel, no drop zone


def test_two_models_side_by_side(show, scene):
    model, images, floats, attention, _ = scene
    other = make("tnt_paper", depth=2)
    page = show(explorer.explorer_data(model, images, compare=other, names=["distilled", "alone"]), width=700)
    cover(page)
    assert page.locator(".stage h3").all_inner_texts() == ["distilled", "alone"]
    hover(page, 6)
    for stage, maps, depth in ((0, attention, 3), (1, interpret.attention(other, floats), 2)):
        row = maps.outer[-1][0].mean(dim=0)[7]
        agree(page, row[1:17], row.max(), stage=stage)
        assert summary(page, stage).startswith(f"Block {depth}, mean of heads: patch 7 attends most to")
    page.locator(".stage").first.get_by_role("button", name="distillation").click()
    settle(page)
    assert summary(page, 1) == "This model has no distillation token."
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 700


@pytest.mark.parametrize("width", [700, 1280])
def test_nothing_sticks_out_and_the_dark_is_dark(show, scene, width):
    page = show(scene[4], width=width, dark=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    ink, paper = page.locator("#explorer").evaluate(
        "(one) => ['color', 'backgroundColor'].map((name) => getComputedStyle(one)[name].match(/\\d+/g).map(Number))"
    )
    assert min(ink) > 180
    assert max(paper) < 60


def test_it_waits_until_it_is_on_the_page(show, scene):
    """A notebook makes a widget before it gives it a place."""
    text = explorer.page_html(scene[4]).replace('<main id="explorer"', '<main id="explorer" style="display: none"')
    page = show(None, text=text)
    settle(page)
    assert page.locator("#explorer").get_attribute("data-ready") is None
    page.evaluate("() => { document.querySelector('#explorer').style.display = ''; }")
    page.wait_for_selector("#explorer[data-ready]")
    cover(page)
    row = scene[3].outer[2][0].mean(dim=0)[0]
    agree(page, row[1:17], row.max())


# --- a saved notebook, and speed


def test_an_exported_notebook_works_without_a_kernel(show, scene):
    from nbconvert import HTMLExporter

    attention, data = scene[3], scene[4]
    output = nbformat.v4.new_output(
        "display_data", data={"text/html": explorer.iframe_html(data), "text/plain": "Explorer"}
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("Explorer(model, images)", outputs=[output])])
    page = show(None, text=HTMLExporter(template_name="lab").from_notebook_node(book)[0])
    frame = page.frame_locator("iframe[title='Attention explorer']")
    frame.locator("#explorer[data-ready]").wait_for()
    inside = next(one for one in page.frames if one.parent_frame)
    frame.locator("input[aria-label=opacity]").fill("10")
    frame.locator("input[aria-label=block]").fill("0")
    inside.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    row = attention.outer[0][0].mean(dim=0)[0]
    shown = inside.evaluate("() => [...document.querySelector('#explorer').explorer.stages[0].shown.outer]")
    assert shown == pytest.approx(row.tolist(), abs=1 / 255)
    box = frame.locator(".outer > canvas").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    inside.wait_for_function(
        "() => document.querySelector('.summary').textContent.includes(': patch 4 attends most to')"
    )
    page.mouse.down()
    page.mouse.up()
    inside.wait_for_function("() => document.querySelector('.stream.inner').textContent.includes('patch 4')")


def test_the_first_view_takes_less_than_a_second_and_a_frame_less_than_its_time(show):
    model = create_model("titn_paper").eval()
    model.preprocessing = Preprocessing("x", tuple("abcdefghij"), (0.5,) * 3, (0.3,) * 3)
    data = explorer.explorer_data(model, torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    first, frames = [], []
    for _ in range(3):
        page = show(data)
        first.append(page.evaluate("() => performance.measure('first', 'data', 'ready').duration"))
        times = []
        for step in range(40):
            hover(page, step % PATCHES)
            times.append(page.evaluate("() => document.querySelector('#explorer').explorer.drawTime"))
        frames.append(median(times))
    assert min(first) < 1000, first
    assert min(frames) < 16, frames
