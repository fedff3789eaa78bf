"""The explorer's arrays against the models', what it refuses, its page, its command, its widget."""

import base64
import copy
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from titn_lib import TITNError, create_model, interpret, save_model
from titn_lib.__main__ import main
from titn_lib.data.images import load_image
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.interpret import explorer
from titn_lib.interpret.explorer import data as explorer_arrays
from titn_lib.interpret.explorer import forward as explorer_forward

TOP = Path(__file__).parents[2]
SMALL = {"num_classes": 6, "in_channels": 1, "image_size": (8, 12), "patch_size": 4, "depth": 3}
PREPROCESSING = Preprocessing("x", tuple("abcdef"), (0.4,), (0.3,))
STUDENTS = {
    "titn_paper": {},
    "titn_nano": {},
    "tnt_paper": {},
    "tnt_s": {"pixel_size": 2, "inner_width": 8, "outer_width": 24},
    "vit_paper": {},
    "distilled_vit_paper": {},
}


def make(name, **settings):
    """A small student whose attention is far from even."""
    model = create_model(name, **{**SMALL, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    model.preprocessing = PREPROCESSING
    return model.eval()


def random_images(model, count=2):
    size = (count, model.config.in_channels, *model.config.image_size)
    return torch.randint(0, 256, size, dtype=torch.uint8)


def normalized(images):
    return normalize(images, PREPROCESSING.mean, PREPROCESSING.std)


@pytest.fixture(params=STUDENTS)
def student(request):
    return make(request.param, **STUDENTS[request.param])


# --- arrays


def test_packed_rows_by_hand():
    packed = explorer.pack(torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.7, 0.1, 0.1]]))
    assert list(packed["bytes"]) == [255, 128, 128, 0, 36, 255, 36, 36]
    assert np.frombuffer(packed["scale"], np.float32).tolist() == pytest.approx([0.5, 0.7])
    torch.testing.assert_close(explorer.unpack(packed)[1, 0], torch.tensor(36 / 255 * 0.7))
    assert explorer.unpack(explorer.pack(torch.zeros(2, 3))).sum() == 0


def test_attention_equals_the_models(student):
    images = random_images(student)
    data = explorer.explorer_data(student, images)
    wanted = interpret.attention(student, normalized(images))
    for index in range(2):
        kept = explorer.attention_maps(data, index)
        assert [len(kept.inner), len(kept.outer)] == [len(wanted.inner), 3]
        for ours, its in zip([*kept.inner, *kept.outer], [*wanted.inner, *wanted.outer], strict=True):
            torch.testing.assert_close(ours[0], its[index], atol=1 / 510 + 1e-6, rtol=0)
            spread = its[index].amax(dim=-1) * its.shape[-1] / 510
            assert ((ours[0].sum(dim=-1) - 1).abs() <= spread + 1e-5).all()


def test_rollout_through_each_block(student):
    images = random_images(student, 1)
    view = explorer.explorer_data(student, images)["images"][0]["models"][0]
    wanted = interpret.attention(student, normalized(images))
    for block in range(3):
        ours = explorer.unpack(view["rolled_outer"])[block, 0]
        torch.testing.assert_close(ours, interpret.rollout(wanted.outer[: block + 1])[0], atol=1 / 510 + 1e-6, rtol=0)
        if wanted.inner:
            ours = explorer.unpack(view["rolled_inner"])[block, :, 0]
            torch.testing.assert_close(
                ours, interpret.rollout(wanted.inner[: block + 1])[0], atol=1 / 510 + 1e-6, rtol=0
            )


def test_relevance_and_predictions(student):
    images = random_images(student, 1)
    view = explorer.explorer_data(student, images)["images"][0]["models"][0]
    kept, side = explorer.unpack(view["relevance"]), view["relevance"]["side"]
    heads = ("class", "distillation")[: 1 + student.config.distillation_token]
    assert (len(kept), side) == (2 * len(heads), getattr(student.config, "pixel_size", 4))
    for place, head in enumerate(heads):
        logits = interpret.head_logits_fn(student, head)(normalized(images)).detach()
        best = view["predictions"][place]
        assert view["relevance"]["classes"][place] == best[0][0] == int(logits.argmax())
        assert [share for _, share in best] == pytest.approx(sorted(logits[0].softmax(0).tolist())[:0:-1], abs=1e-5)
        for weighted in (0, 1):
            classes = logits.argmax(dim=-1) if weighted else None
            whole = interpret.relevance(student, normalized(images), head, classes).image[0]
            by_cell = whole.reshape(8 // side, side, 12 // side, side).sum(dim=(1, 3)).flatten()
            torch.testing.assert_close(kept[2 * place + weighted], by_cell, atol=1 / 510 + 1e-6, rtol=0)


def test_the_prediction_after_every_block(student):
    images = random_images(student, 1)
    view = explorer.explorer_data(student, images)["images"][0]["models"][0]
    assert view["lens"][-1] == [best[0] for best in view["predictions"]]  # exactly
    heads = ("class", "distillation")[: 1 + student.config.distillation_token]
    for count in (1, 2, 3):  # a model of the first blocks, with the same heads
        shorter = copy.deepcopy(student)
        shorter.blocks = student.blocks[:count]
        for place, head in enumerate(heads):
            shares = interpret.head_logits_fn(shorter, head)(normalized(images))[0].detach().softmax(dim=0)
            label, share = view["lens"][count - 1][place]
            assert (label, share) == (int(shares.argmax()), pytest.approx(float(shares.max()), abs=1e-5))


def unpack_numbers(packed):
    values = torch.from_numpy(np.frombuffer(packed["bytes"], "<i2").astype(np.float32))
    return (values * packed["scale"] / 32767).view(packed["shape"])


@pytest.mark.parametrize("stream", ["inner", "outer"])
def test_the_arithmetic_of_the_last_attention(student, monkeypatch, stream):
    images = random_images(student, 1)
    data = explorer.explorer_data(student, images)
    tokens, qkv = data["images"][0]["models"][0][f"{stream}_tokens"], data["models"][0]["qkv"]
    wanted = getattr(interpret.attention(student, normalized(images)), stream)
    assert (stream in qkv) == (tokens is not None) == bool(wanted)  # a ViT has no inner stream
    if not wanted:
        return
    weight, bias = (unpack_numbers(qkv[stream][name]) if name in qkv[stream] else None for name in ("weight", "bias"))
    assert (bias is None) == (not getattr(student.config, "qkv_bias", True))
    linear = torch.nn.functional.linear(unpack_numbers(tokens), weight, bias)
    query, key, _ = linear.unflatten(-1, (3, wanted[-1].shape[-3], -1)).movedim((-3, -2), (0, -3))
    shares = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
    torch.testing.assert_close(shares, wanted[-1][0], atol=2e-3, rtol=0)
    monkeypatch.setattr(explorer_forward, "MAX_BYTES_ALL_HEADS", 100)  # the mean over heads has no such arithmetic
    assert explorer.explorer_data(student, images)["images"][0]["models"][0][f"{stream}_tokens"] is None


@pytest.mark.parametrize(
    ("name", "settings", "streams"),
    [
        ("titn_nano", {"outer_width": 196}, ["inner"]),  # too wide
        ("revit_nano", {}, ["inner"]),  # scores that earlier blocks have a part in
        ("revit_nano", {"residuals": "both"}, []),
    ],
)
def test_streams_without_arithmetic(name, settings, streams):
    model = make(name, **settings)
    view = explorer.explorer_data(model, random_images(model, 1))["images"][0]["models"][0]
    assert [stream for stream in ("inner", "outer") if view[f"{stream}_tokens"]] == streams


def without_patches(image, patches):
    """The normalized image with patches of 4×4 pixels, three in a row, replaced by 0, its mean color."""
    image = image.clone()
    for patch in patches:
        row, column = divmod(patch, 3)
        image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
    return image


def shares_by_hand(student, images):
    """The model's probabilities, and each head's if there are two: image output class."""
    with torch.no_grad():
        outputs = [student(images)]
        if student.config.distillation_token:
            outputs += [interpret.head_logits_fn(student, head)(images) for head in ("class", "distillation")]
    return torch.stack(outputs, dim=1).softmax(dim=-1)


def test_the_predictions_without_each_patch(student):
    images = random_images(student, 1)
    kept = explorer.explorer_data(student, images)["images"][0]["models"][0]["hiding"]
    shown = normalized(images)
    before = shares_by_hand(student, shown)
    after = shares_by_hand(student, torch.cat([without_patches(shown, [patch]) for patch in range(6)]))
    classes = kept["classes"]
    assert classes[0] == int(before[0, 0].argmax())
    assert set(classes) >= {*before[0].topk(5).indices.flatten().tolist(), *after.argmax(dim=-1).flatten().tolist()}
    shares = unpack_numbers(kept["shares"])
    torch.testing.assert_close(shares, torch.cat([before, after])[..., classes], atol=5e-5, rtol=0)
    drop = before[0, 0, classes[0]] - after[:, 0, classes[0]]
    torch.testing.assert_close(unpack_numbers(kept["drop"]), drop, atol=1e-5 + float(drop.abs().max()) / 30000, rtol=0)
    for patch in range(6):  # as the deletion curve deletes a cell
        order = torch.tensor([[patch, *(other for other in range(6) if other != patch)]])
        curve = interpret.perturbation_curve(
            student, shown, torch.zeros_like(shown), order, torch.tensor(classes[:1]), steps=6
        )
        assert float(shares[1 + patch, 0, 0]) == pytest.approx(float(curve[0, 1]), abs=5e-5)
    assert explorer.explorer_data(student, images)["models"][0]["mean"] == [0.4]  # the color of a hidden patch


def test_the_prediction_without_any_pixels(student):
    """Sets of pixel tokens, on an image that is wider than high."""
    image, sets = normalized(random_images(student, 1)), torch.rand(3, 6, 4) < 0.5
    shown = image.repeat(4, 1, 1, 1)
    for number, patch, pixel in sets.nonzero().tolist():
        y, x = 4 * (patch // 3) + 2 * (pixel // 2), 4 * (patch % 3) + 2 * (pixel % 2)
        shown[1 + number, :, y : y + 2, x : x + 2] = 0
    found = explorer_arrays.hide_pixels(student, image, sets)
    wanted = shares_by_hand(student, shown)
    torch.testing.assert_close(found.shares, wanted[..., found.classes], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.drop, wanted[0, 0, found.classes[0]] - wanted[1:, 0, found.classes[0]])


def test_the_squares_that_can_be_hidden_fit_into_the_pixel_tokens_of_both_students():
    sizes = {"patch_size": 12, "image_size": (12, 24)}
    vit = make("vit_paper", **sizes)
    two, three = (make("titn_paper", pixel_size=size, **sizes) for size in (6, 4))
    for one, other, split in ((vit, None, 1), (vit, two, 2), (two, three, 6), (three, three, 3)):
        assert explorer.explorer_data(one, random_images(one, 1), compare=other)["split"] == split


def test_images_labels_and_teacher():
    model, teacher = (
        make("titn_nano", in_channels=3, image_size=(32, 32)),
        create_model("vgg7_bn", num_classes=6).eval(),
    )
    teacher.preprocessing = model.preprocessing = Preprocessing("x", tuple("abcdef"), (0.4,) * 3, (0.3,) * 3)
    images = random_images(model)
    data = explorer.explorer_data(model, images, labels=torch.tensor([4, 1]), teacher=teacher, titles=["one", "two"])
    assert [(image["title"], image["label"]) for image in data["images"]] == [("one", 4), ("two", 1)]
    shown = np.frombuffer(data["images"][1]["rgb"], np.uint8).reshape(32, 32, 3)
    np.testing.assert_array_equal(shown, images[1].permute(1, 2, 0))
    predicted = teacher(normalize(images[:1], (0.4,) * 3, (0.3,) * 3))[0].softmax(0).topk(5)
    assert [label for label, _ in data["images"][0]["teacher"]] == predicted.indices.tolist()
    assert (data["teacher"], len(data["palette"])) == ("vgg7_bn", 768)


def test_the_palette_is_that_of_the_figures():
    data = explorer.explorer_data(make("vit_paper"), torch.zeros(1, 1, 8, 12, dtype=torch.uint8))
    assert (list(data["palette"][:3]), list(data["palette"][-3:])) == ([0, 34, 78], [254, 232, 56])  # cividis


def test_a_model_with_much_attention_comes_with_the_mean(monkeypatch):
    model, images = make("titn_paper"), torch.zeros(1, 1, 8, 12, dtype=torch.uint8)
    wanted = interpret.attention(model, normalized(images))
    monkeypatch.setattr(explorer_forward, "MAX_BYTES_ALL_HEADS", 100)
    kept = explorer.attention_maps(explorer.explorer_data(model, images))
    torch.testing.assert_close(kept.outer[1], wanted.outer[1].mean(dim=1, keepdim=True), atol=1 / 510 + 1e-6, rtol=0)
    torch.testing.assert_close(kept.inner[1], wanted.inner[1].mean(dim=2, keepdim=True), atol=1 / 510 + 1e-6, rtol=0)
    monkeypatch.setattr(explorer_forward, "MAX_BYTES", 200)
    with pytest.raises(TITNError, match=r"attention of titn_paper on one image of 8×12 takes .* load it for smaller"):
        explorer.explorer_data(model, images)


def test_many_patches_come_without_their_effect(monkeypatch):
    monkeypatch.setattr(explorer_arrays, "MAX_HIDDEN", 5)
    model = make("vit_paper")
    assert explorer.explorer_data(model, random_images(model, 1))["images"][0]["models"][0]["hiding"] is None
    monkeypatch.setattr(explorer_arrays, "MAX_HIDDEN", 6)
    assert explorer.explorer_data(model, random_images(model, 1))["images"][0]["models"][0]["hiding"]


def test_the_published_model_takes_less_than_a_megabyte():
    model = create_model("titn_paper").eval()
    model.preprocessing = Preprocessing("x", tuple("abcdefghij"), (0.5,) * 3, (0.3,) * 3)
    data = explorer.explorer_data(model, random_images(model, 2))
    assert data["images"][0]["models"][0]["inner"]["shape"] == [12, 16, 4, 16, 16]  # all heads
    both = len(explorer.page_html(data))
    data["images"].pop()
    assert 300_000 < both - len(explorer.page_html(data)) < 1_000_000


# --- errors


def test_refusals():
    model, other = make("titn_nano"), make("tnt_paper")
    images = random_images(model)

    def refused(match, model=model, images=images, **options):
        with pytest.raises(TITNError, match=match):
            explorer.explorer_data(model, images, **options)

    refused("1 to 50 images, not 0: choose some", images=images[:0])
    refused("1 to 50 images, not 200: choose some", images=images[:1].expand(200, -1, -1, -1))
    refused(r"expects uint8 images, .*, not torch\.float32", images=images.float())
    refused(r"not torch\.uint8 \[1, 8, 12\]", images=images[0])
    refused("1×8×12 images", images=torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    refused("vgg7_bn has no attention maps", model=create_model("vgg7_bn").eval())
    refused("3 labels for 2", labels=[1, 2, 3])
    refused("there are 6 classes: give numbers below", labels=[1, 6])
    refused("1 titles for 2", titles=["x"])
    refused("0 titles for 2", titles=[])
    refused("1 names for 2", compare=other, names=["x"])
    refused("Linear is not a model of titn_lib", teacher=nn.Linear(1, 1))
    coarse = make("titn_nano", patch_size=2)
    refused("cut an image into 2×3 and 4×6 patches: compare models with the same", compare=coarse)
    larger = make("titn_nano", image_size=(8, 16))
    refused("1×8×16 images", compare=larger)
    other.preprocessing = Preprocessing("x", tuple("uvwxyz"), (0.4,), (0.3,))
    refused("have different classes: compare models of the same data", compare=other)
    other.preprocessing = None
    refused("tnt_paper has no preprocessing", model=other)
    refused(r"call model\.eval\(\) first", model=make("titn_paper").train())
    two = make("titn_nano", in_channels=2)
    two.preprocessing = Preprocessing("x", PREPROCESSING.classes, (0.4,) * 2, (0.3,) * 2)
    refused("images of 1 or 3 channels, not 2", model=two, images=random_images(two))
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'"):
        explorer.explorer_data(model, images, label=[1, 2])


# --- the page


def test_the_page_holds_all_it_needs(tmp_path):
    model = make("titn_nano")
    images = random_images(model)
    model.preprocessing = Preprocessing("x", ("</script><b>", "<!--", "&amp;", '"', "é", "f"), (0.4,), (0.3,))
    explorer.write_page(tmp_path / "page.html", model, images, compare=make_like(model), names=["<one>", "two"])
    text = (tmp_path / "page.html").read_text()
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # not addresses
    assert set(re.findall(r"https?://[^\"'` ]*", text)) == names
    for word in ("import ", "fetch(", "XMLHttpRequest", "url(", " src=", " href=", "@import"):
        assert word not in text, word
    assert text.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    data = json.loads(inside)
    assert data["classes"][0] == "</script><b>"
    assert [model["name"] for model in data["models"]] == ["<one>", "two"]
    assert "<title>Attention of &lt;one&gt; and two</title>" in text
    packed = data["images"][1]["models"][1]["outer"]
    packed = {name: base64.b64decode(value) if name != "shape" else value for name, value in packed.items()}
    wanted = interpret.attention(make_like(model), normalized(images)).outer
    torch.testing.assert_close(explorer.unpack(packed)[2], wanted[2][1], atol=1 / 510 + 1e-6, rtol=0)
    with pytest.raises(TITNError, match="cannot write"):
        explorer.write_page(tmp_path / "page.html" / "x", model, images)


def make_like(model):
    torch.manual_seed(7)
    twin = make(model.config.name)
    twin.preprocessing = model.preprocessing
    return twin


def test_the_command(tmp_path, capsys):
    preprocessing = Preprocessing("x", tuple("abcdef"), (0.5,) * 3, (0.25,) * 3)
    model = create_model("titn_nano", num_classes=6)
    save_model(model, tmp_path / "m.safetensors", preprocessing)
    save_model(create_model("vgg7_bn", num_classes=6), tmp_path / "t.safetensors", preprocessing)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(tmp_path / "cat.png")
    out, weights = tmp_path / "page.html", str(tmp_path / "m.safetensors")
    command = ["explore", str(tmp_path / "cat.png"), "--weights", weights, "--out", str(out)]
    assert main([*command, "--compare", weights, "--teacher", str(tmp_path / "t.safetensors")]) == 0
    assert str(out) in capsys.readouterr().out
    data = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.S)[1])
    assert (data["images"][0]["title"], data["teacher"], len(data["models"])) == ("cat.png", "vgg7_bn", 2)
    shown = np.frombuffer(base64.b64decode(data["images"][0]["rgb"]), np.uint8).reshape(32, 32, 3)
    np.testing.assert_array_equal(shown, load_image(tmp_path / "cat.png", 3, (32, 32)).permute(1, 2, 0))
    assert data["images"][0]["label"] is None
    assert main([*command, "--labels", "e"]) == 0
    assert json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.S)[1])["images"][0]["label"] == 4
    capsys.readouterr()
    for labels, problem in (
        (["g"], "unknown class 'g': the choices are a, b"),
        (["a", "b"], "2 labels for 1: give one for each"),
    ):
        assert main([*command, "--labels", *labels]) == 1
        assert problem in capsys.readouterr().err
    assert main(["explore", str(tmp_path / "none.png"), "--weights", weights, "--out", str(out)]) == 1
    assert "there is no image" in capsys.readouterr().err
    assert main(["explore", "x.png", "--weights", str(tmp_path / "t.safetensors")]) == 1
    assert "vgg7_bn has no attention maps" in capsys.readouterr().err


# --- the widget


def test_nothing_else_needs_anywidget(tmp_path):
    code = "import sys; sys.modules['anywidget'] = None; import titn_lib, titn_lib.plots\n"
    code += "from titn_lib.interpret import explorer\n"
    code += "try:\n    explorer.Explorer\nexcept titn_lib.TITNError as problem:\n    print(problem)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOP)
    assert "needs the package anywidget: install it" in run.stdout, run.stderr
    with pytest.raises(AttributeError, match="no attribute 'explore'"):
        explorer.explore  # noqa: B018


def test_the_widget_carries_the_same_data_and_takes_images(tmp_path, monkeypatch):
    pytest.importorskip("anywidget")
    model, other = make("titn_nano"), make("tnt_paper")
    images = random_images(model)
    widget = explorer.Explorer(model, images, labels=[1, 2], compare=other, names=["a", "b"])
    assert widget.data == explorer.explorer_data(model, images, labels=[1, 2], names=["a", "b"], compare=other)
    live, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in live
    assert live["text/html"] == explorer.iframe_html(widget.data)
    assert "sandbox=" in live["text/html"]

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)).save(tmp_path / "own.png")
    sent = []
    monkeypatch.setattr(widget, "send", lambda content: sent.append(content))
    widget._receive(None, {"image": "../own.png"}, [memoryview((tmp_path / "own.png").read_bytes())])
    assert [image["title"] for image in widget.data["images"]] == ["image 1", "image 2", "own.png"]
    own = load_image(tmp_path / "own.png", 1, (8, 12))
    assert (
        widget.data["images"][2]["models"]
        == explorer.explorer_data(model, own[None], compare=other)["images"][0]["models"]
    )
    hide = {"key": "any", "image": 2, "pixels": [4, 5, 6, 7, 20, 21, 22, 23]}  # patches 1 and 5 of the added image
    widget._receive(None, {"hide": hide}, [])
    answer = sent.pop()["hidden"]
    assert answer["key"] == "any"
    for student, found in zip((model, other), answer["models"], strict=True):
        shown = torch.cat([without_patches(normalized(own[None]), patches) for patches in ([], [1, 5])])
        wanted = shares_by_hand(student, shown)[..., found["classes"]].flatten().tolist()
        assert found["shares"] == pytest.approx(wanted, abs=1e-5)
    widget._receive(None, {"image": "notes.txt"}, [b"not an image"])
    assert sent == [{"error": "notes.txt is not an image or is damaged: remove it or save it again"}]
    monkeypatch.setattr("titn_lib.interpret.explorer.widget.MAX_IMAGES", 3)
    widget._receive(None, {"image": "own.png"}, [(tmp_path / "own.png").read_bytes()])
    assert "shows at most 3 images" in sent[1]["error"]
    assert len(widget.data["images"]) == 3


def test_where_frames_are_dropped_a_figure_and_a_sentence_are_left():
    """JupyterLab (a notebook that isn't trusted yet) and GitHub keep no <iframe>, <script> or <style>."""
    model = make("titn_nano")
    shown = explorer.iframe_html(explorer.explorer_data(model, random_images(model)))
    left = re.sub(r"<(style|script|iframe)\b.*?</\1>", "", shown, flags=re.DOTALL)
    assert left.startswith("<figure><img src=")
    assert "trust the notebook" in left
    png = base64.b64decode(re.search(r"base64,([^\"]+)", left)[1])
    with Image.open(io.BytesIO(png)) as still:
        assert still.width > 400
        assert np.unique(still.convert("L")).size > 50
    assert "</iframe><figure>" in shown  # and where frames are kept, the figure is hidden
    assert "iframe[title='Attention explorer'] + figure {display: none}" in shown


def test_a_saved_notebook_keeps_the_page_and_drops_the_live_part():
    spec = importlib.util.spec_from_file_location("execute", TOP / "notebooks" / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)

    def output(**data):
        return nbformat.v4.new_output(
            "display_data", data={name.replace("_", "/"): value for name, value in data.items()}
        )

    live = output(text_html="page", text_plain="Explorer")
    live.data[execute.WIDGET] = {"model_id": "1"}
    assert dict(execute.without_widget(live).data) == {"text/html": "page", "text/plain": "Explorer"}
    slider = output(text_plain="Slider")
    slider.data[execute.WIDGET] = {"model_id": "2"}
    assert execute.without_widget(slider) is None
    assert execute.without_widget(output(image_png="x")).data == {"image/png": "x"}
    stream = nbformat.v4.new_output("stream", text="hello")
    assert execute.without_widget(stream) is stream
