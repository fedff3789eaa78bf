"""A page that computes, in a real browser and without network: it gives what Python gives.

Needs onnx, and the npm package onnxruntime-web: npm install onnxruntime-web, and its folder in ONNXRUNTIME_WEB.
"""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from titn_lib import TITNError, create_model, save_model
from titn_lib.data.transforms import Preprocessing
from titn_lib.interpret import explorer
from titn_lib.interpret.explorer import live
from titn_lib.interpret.explorer.data import hide_pixels, normalized

RUNTIME = os.environ.get("ONNXRUNTIME_WEB")  # an absolute path
computes = pytest.mark.skipif(not RUNTIME, reason="needs onnxruntime-web: set ONNXRUNTIME_WEB to its folder")
CLASSES = ("cat", "dog", "ship", "frog", "car", "deer", "bird")
ADDED = "(count) => document.querySelector('#explorer').explorer.data.images.length === count"
NOTICE = "(text) => document.querySelector('.notice').textContent.startsWith(text)"
VIEWS = """() => document.querySelector("#explorer").explorer.data.images.at(-1).models.map((view) => {
  const plain = (one) => one && Object.fromEntries(Object.entries(one).map(([name, part]) =>
    [name, ArrayBuffer.isView(part) ? [...part] : part]));
  const hiding = view.hiding && { classes: view.hiding.classes, shares: plain(view.hiding.shares),
    drop: plain(view.hiding.drop) };
  const arrays = ["outer", "inner", "rolled_outer", "rolled_inner", "inner_tokens", "outer_tokens"];
  return { ...view, hiding, ...Object.fromEntries(arrays.map((name) => [name, plain(view[name])])) };
})"""


def make(name="titn_paper", channels=3, std=0.3, **settings):
    torch.manual_seed(1)
    model = create_model(name, num_classes=7, in_channels=channels, **{"depth": 3, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    model.preprocessing = Preprocessing("photos", CLASSES, (0.4, 0.5, 0.6)[:channels], (0.3, 0.2, 0.25)[:channels])
    return model.eval()


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)


def file_of(image, name="mine.png", **settings):
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, format="png", **settings)
    return {"name": name, "mimeType": "image/png", "buffer": content.getvalue()}


@pytest.fixture
def open_live(show, tmp_path):
    """Opens a page with models, written in a process of its own: the tests' checks of types want no traced sizes."""

    def open_page(*students, **options):
        Image.new("RGB", (32, 32), (100, 100, 100)).save(tmp_path / "gray.png")
        command = [sys.executable, "-m", "titn_lib", "explore", "gray.png", "--live", RUNTIME, "--out", "live.html"]
        for option, student in zip(("--weights", "--compare"), students, strict=False):
            save_model(student, tmp_path / f"{option[2:]}.safetensors")
            command += [option, f"{option[2:]}.safetensors"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        page = show(None, text=(tmp_path / "live.html").read_text(encoding="utf-8"), **options)
        page.wait_for_selector("#explorer[data-ready]")
        return page

    return open_page


def add(page, *files, count=2):
    page.locator("input[type=file]").set_input_files(list(files))
    page.wait_for_function(ADDED, arg=count, timeout=120_000)


def numbers(packed):
    return np.frombuffer(bytes(packed["bytes"]), "<i2") * packed["scale"] / 32767


def rows(packed):
    return explorer.unpack({**packed, "bytes": bytes(packed["bytes"]), "scale": bytes(packed["scale"])})


def best(pairs):
    return {int(label): share for label, share in pairs}


@computes
@pytest.mark.parametrize("name", ["titn_paper", "vit_paper", "titn_nano"])
def test_an_added_image_is_computed_as_in_python(open_live, image, name):
    model = make(name)
    page = open_live(model)
    add(page, file_of(image))
    (view,) = page.evaluate(VIEWS)
    (wanted,) = explorer.explorer_data(model, image[None])["images"][0]["models"]
    assert view["relevance"] is None
    for maps in ("outer", "inner", "rolled_outer", "rolled_inner"):
        assert (view[maps] is None) == (wanted[maps] is None)
        if wanted[maps]:
            torch.testing.assert_close(rows(view[maps]), explorer.unpack(wanted[maps]), atol=1 / 250, rtol=0)
            scales = (np.frombuffer(bytes(one["scale"]), np.float32) for one in (view[maps], wanted[maps]))
            np.testing.assert_allclose(*scales, atol=1e-4)  # a row's maximum is not quantized
    assert best(view["output"]) == pytest.approx(best(wanted["output"]), abs=1e-4)
    for mine, theirs in zip(view["predictions"], wanted["predictions"], strict=True):
        assert best(mine) == pytest.approx(best(theirs), abs=1e-4)
    for mine, theirs in zip(view["lens"], wanted["lens"], strict=True):
        assert best(mine) == pytest.approx(best(theirs), abs=1e-4)
    assert view["hiding"]["classes"] == wanted["hiding"]["classes"]
    for part in ("shares", "drop"):
        np.testing.assert_allclose(numbers(view["hiding"][part]), numbers(wanted["hiding"][part]), atol=2e-4)
    for tokens in ("inner_tokens", "outer_tokens"):
        assert (view[tokens] is None) == (wanted[tokens] is None)
        if wanted[tokens]:
            np.testing.assert_allclose(numbers(view[tokens]), numbers(wanted[tokens]), atol=2e-3)


@computes
def test_two_students_and_hidden_patches_and_pixel_tokens(open_live, image):
    """Their pixel tokens differ: 2×2 image pixels, and 4×4."""
    students = make(), make(depth=2, std=0.2, pixel_size=4)
    page = open_live(*students)
    add(page, file_of(image))
    page.evaluate("() => document.querySelector('#explorer').explorer.open(5)")
    page.locator(".hiding summary").first.click()
    patches, pixels = (page.locator(f".stage >> nth=0 >> .hiding canvas >> nth={number}") for number in (0, 1))
    for board, cells in ((patches, (3, 8)), (pixels, (1, 2, 7, 12))):  # all four by four
        board.scroll_into_view_if_needed()
        box = board.bounding_box()
        for cell in cells:
            row, column = divmod(cell, 4)
            page.mouse.click(*(box[side] + (at + 0.5) * box["width"] / 4 for side, at in (("x", column), ("y", row))))
    page.wait_for_function(
        "() => document.querySelector('#explorer').explorer.answer?.key === '1: 4,9,6.2,6.3,6.8,6.13'", timeout=60_000
    )
    answers = page.evaluate("() => document.querySelector('#explorer').explorer.answer.models")
    hidden = torch.zeros(1, 16, 16, dtype=torch.bool)
    hidden[0, [3, 8]] = True
    hidden[0, 5, [1, 2, 7, 12]] = True
    for model, answer in zip(students, answers, strict=True):
        classes, shares, _ = hide_pixels(model, normalized(model, image), hidden)
        assert answer["classes"] == classes
        assert answer["shares"] == pytest.approx(shares.flatten().tolist(), abs=1e-4)
    page.wait_for_function(
        "(words) => document.querySelector('.hiding > p[aria-live]').textContent.includes(words)",
        arg="Without patches 4 and 9, and 4 pixel tokens of patch 6: ",
    )


CAMERA = """(element) => {
  const { explorer } = element, live = explorer.backend, run = live.run.bind(live);
  window.seen = { frames: 0, running: 0, most: 0, titles: new Set() };
  live.run = async (...parts) => {
    seen.most = Math.max(seen.most, ++seen.running);
    await new Promise((done) => setTimeout(done, 50)); // a slow model, so that the next frame could begin meanwhile
    const found = await run(...parts);
    seen.running--;
    return found;
  };
  const put = live.put.bind(live);
  live.put = async (...parts) => { seen.frames++; seen.titles.add(parts[0]); return put(...parts); };
}"""


@computes
@pytest.mark.parametrize("by", ["mouse", "keyboard", "touch"])
def test_the_camera(open_live, by):
    model = make("titn_paper", depth=1)
    page = open_live(model, has_touch=by == "touch", width=375 if by == "touch" else 1280, permissions=["camera"])
    page.locator("#explorer").evaluate(CAMERA)
    button = page.locator("button.upload")

    def press():
        if by == "keyboard":
            button.focus()
            page.keyboard.press("Enter")
        else:
            (button.tap if by == "touch" else button.click)()

    state = "() => { const { state, data } = document.querySelector('#explorer').explorer; return "
    assert button.inner_text() == "camera"
    press()
    page.wait_for_function("() => seen.frames > 5", timeout=120_000)
    assert button.inner_text() == "stop camera"
    assert page.evaluate("() => seen.most") == 1  # never two at once
    assert page.evaluate("() => [...seen.titles]") == ["camera, image 2"]
    assert page.evaluate(f"{state} [state.image, data.images.length]; }}") == [1, 2]
    rgb = f"{state} [...data.images[1].rgb]; }}"
    first = page.evaluate(rgb)
    page.wait_for_function("(first) => `${document.querySelector('#explorer').explorer.data.images[1].rgb}` !== first",
                           arg=",".join(map(str, first)))  # fmt: skip
    assert np.std(first) > 10  # Chromium's test pattern, and not black
    assert page.locator(".summary").get_attribute("aria-live") == "off"
    if by == "keyboard":
        assert button.evaluate("(one) => one === document.activeElement")  # no frame takes the focus

    page.locator(".thumbs button").first.click()  # another image: the camera waits
    page.wait_for_timeout(500)
    frames = page.evaluate("() => seen.frames")
    page.wait_for_timeout(500)
    assert page.evaluate("() => seen.frames") == frames
    page.locator(".thumbs button").last.click()
    page.wait_for_function("(frames) => seen.frames > frames + 2", arg=frames)

    press()
    page.wait_for_function("() => document.querySelector('#explorer').explorer.data.images[1].models[0].hiding")
    assert button.inner_text() == "camera"
    assert page.locator(".summary").get_attribute("aria-live") == "polite"
    last = torch.tensor(page.evaluate(rgb)).view(32, 32, 3).permute(2, 0, 1).to(torch.uint8)
    (view,), (wanted,) = page.evaluate(VIEWS), explorer.explorer_data(model, last[None])["images"][0]["models"]
    assert best(view["output"]) == pytest.approx(best(wanted["output"]), abs=1e-4)
    np.testing.assert_allclose(numbers(view["hiding"]["drop"]), numbers(wanted["hiding"]["drop"]), atol=2e-4)
    frames = page.evaluate("() => seen.frames")
    page.wait_for_timeout(300)
    assert page.evaluate("() => seen.frames") == frames


@computes
def test_an_image_in_the_place_of_another_is_drawn_again(open_live):
    page = open_live(make("titn_paper", depth=1))
    page.locator(".arithmetic.of-inner summary").click()
    seen = []
    for _ in range(2):
        pixels = torch.randint(0, 256, (3 * 32 * 32,)).tolist()
        found = page.evaluate(
            """async (pixels) => {
          const { explorer } = document.querySelector("#explorer");
          await explorer.backend.queue(() => explorer.backend.put("mine", Uint8Array.from(pixels), 1));
          explorer.draw();
          window.buttons ??= [...document.querySelector(".thumbs").children];
          return [document.querySelector(".arithmetic.of-inner table").textContent, buttons[1].firstChild.toDataURL(),
            document.querySelector(".outer > canvas").toDataURL()];
        }""",
            pixels,
        )
        assert page.evaluate("() => buttons.every((one) => one.isConnected) && buttons.length") == 2
        seen.append(found)
    assert all(before and before != after for before, after in zip(*seen, strict=True))


@computes
def test_a_camera_that_is_not_there(open_live):
    page = open_live(make("titn_paper", depth=1))
    button, notice = page.locator("button.upload"), page.locator(".notice")
    again = "and press “camera” again."
    for name, text in (
        ("NotFoundError", f"There is no camera: connect one, {again}"),
        ("NotAllowedError", f"The camera isn't allowed: allow it for this page, beside its address, {again}"),
        ("NotReadableError", f"The camera is in use: close the other program, {again}"),
        ("OverconstrainedError", "The camera can't be used (why): try another browser."),
    ):
        page.evaluate(
            "(name) => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('why', name); }; }",
            name,
        )
        button.click()
        page.wait_for_function("(text) => document.querySelector('.notice').textContent === text", arg=text)
        assert "error" in notice.get_attribute("class")
        assert button.inner_text() == "camera"
    page.evaluate("() => Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    button.click()
    assert notice.inner_text() == "A camera needs a page from this computer or by https: open it there."


@computes
def test_it_says_that_files_can_be_dropped(open_live, image):
    page = open_live(make("titn_paper", depth=1), permissions=["camera"])
    assert page.get_by_text("or drop a file anywhere here").is_visible()
    page.evaluate(
        """(content) => {
      const files = new DataTransfer();
      files.items.add(new File([Uint8Array.from(content)], "mine.png"));
      document.querySelector(".help").dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
    }""",
        list(file_of(image)["buffer"]),
    )
    page.locator("button.upload").click()  # meanwhile, the camera: its frames come after the file
    page.wait_for_function(ADDED, arg=3, timeout=120_000)
    titles = "() => document.querySelector('#explorer').explorer.data.images.map((image) => image.title)"
    assert page.evaluate(titles) == ["gray.png", "mine.png", "camera, image 3"]


@computes
def test_a_gray_student_takes_a_photograph(open_live, image):
    model = make(channels=1)
    page = open_live(model)
    add(page, file_of(image))
    gray = torch.tensor(page.evaluate("() => [...document.querySelector('#explorer').explorer.data.images[1].rgb]"))
    gray = gray.view(32, 32, 3).permute(2, 0, 1).to(torch.uint8)
    expected = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")))
    assert (gray - expected.float()).abs().max() <= 1
    (wanted,) = explorer.explorer_data(model, gray[:1][None])["images"][0]["models"]
    (view,) = page.evaluate(VIEWS)
    assert best(view["output"]) == pytest.approx(best(wanted["output"]), abs=1e-4)


@computes
def test_relevance_is_for_stored_images(open_live, image):
    page = open_live(make())
    button = page.get_by_role("button", name="relevance")
    button.click()
    add(page, file_of(image))
    mode = "() => document.querySelector('#explorer').explorer.state.mode"
    page.wait_for_function("() => document.querySelector('.about').textContent.startsWith('mine.png')")
    assert page.evaluate(mode) == "attention"
    assert button.is_disabled()
    about = page.locator(".about").inner_text()
    assert about.endswith("Missing here: relevance, which only Python computes.")  # also for who can't point at it
    page.locator("canvas").first.focus()
    for expected in ("rollout", "attention"):
        page.keyboard.press("m")
        assert page.evaluate(mode) == expected
    page.get_by_role("button", name="gray.png").click()
    page.wait_for_function("() => document.querySelector('.about').textContent.startsWith('gray.png')")
    assert button.is_enabled()
    assert "Missing" not in page.locator(".about").inner_text()


@computes
def test_files_that_are_odd(open_live, image):
    """A damaged file gets a sentence, and the next one is still read; a large one and a transparent one are shrunk."""
    page = open_live(make("titn_paper", depth=1))
    page.locator("input[type=file]").set_input_files({"name": "cat.jpg", "mimeType": "image/jpeg", "buffer": b"x"})
    page.wait_for_function(NOTICE, arg="cat.jpg is not an image that this browser can read")
    large = io.BytesIO()
    Image.new("RGB", (10_000, 5_000), (0, 200, 0)).save(large, format="jpeg")  # 50 megapixels
    add(page, {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": large.getvalue()})
    pixel = "() => [...document.querySelector('#explorer').explorer.data.images.at(-1).rgb.slice(0, 3)]"
    assert page.evaluate(pixel) == pytest.approx([0, 200, 0], abs=3)
    clear = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clear, format="png")
    add(page, {"name": "clear.png", "mimeType": "image/png", "buffer": clear.getvalue()}, count=3)
    assert page.evaluate(pixel) == [255, 255, 255]
    page.locator("input[type=file]").set_input_files([file_of(image, f"{i}.png") for i in range(48)])
    page.wait_for_function(NOTICE, arg="The explorer shows at most 50 images", timeout=240_000)
    assert page.evaluate(ADDED, 50)


def test_a_browser_without_web_assembly(show, monkeypatch, tmp_path):
    """The page shows what is stored."""
    (tmp_path / "dist").mkdir()
    for name in (live.SCRIPT, live.BINARY):
        (tmp_path / "dist" / name).write_bytes(b"")
    monkeypatch.setattr(live, "export", lambda student, image: b"")
    model, images = make(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    explorer.write_page(tmp_path / "live.html", model, images, live=tmp_path)
    text = (tmp_path / "live.html").read_text(encoding="utf-8")
    for script, offers in (("", 1), ("<script>delete window.WebAssembly</script>", 0)):
        page = show(None, text=text.replace("<head>", f"<head>{script}"))
        page.wait_for_selector("#explorer[data-ready]")
        assert page.locator(".adding").count() == offers  # to add an image, or a camera


def test_without_the_runtime(tmp_path):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TITNError, match="is not the package onnxruntime-web"):
        explorer.write_page(tmp_path / "page.html", make(), images, live=tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_without_onnx(tmp_path, monkeypatch):
    def missing(*arguments, **options):
        raise torch.onnx.errors.OnnxExporterError("Module onnx is not installed!")

    monkeypatch.setattr(torch.onnx, "export", missing)
    with pytest.raises(TITNError, match="needs the package onnx: install it"):
        live.export(make(), torch.zeros(3, 32, 32, dtype=torch.uint8))
