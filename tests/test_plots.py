"""Figures: what they show is what they were given."""

import itertools
import os
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from titn_lib import TITNError, create_model, fonts
from titn_lib.models.base import AttentionMaps
from titn_lib.plots import (
    plot_attention,
    plot_confusion,
    plot_heads,
    plot_nested,
    plot_tokens,
    save_figure,
    show_images,
    upsample_nearest,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_confusion_counts():
    figure = plot_confusion(confusion_matrix([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0]), ("a", "b", "c"))
    shown = figure.axes[0].collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(shown, [[0.5, 0.5, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "", "", "1", "", "1", "", "2"]
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()) == ("true class", "predicted class")


def test_a_matrix_of_other_classes_is_refused():
    with pytest.raises(TITNError, match="3 classes need a matrix of 3×3 counts"):
        plot_confusion(confusion_matrix([0, 1], [1, 1]), ("a", "b", "c"))


def test_attention_is_drawn_where_it_belongs():
    """The class token attends to the second patch alone; in every patch the third pixel token gets all attention."""
    model = create_model("titn_nano", image_size=(16, 16), depth=1).eval()
    _, maps = model(torch.randn(1, 3, 16, 16), return_attention=True)
    maps.outer[0].zero_()[:, :, 0, 2] = 1
    maps.inner[0].zero_()[..., 2] = 1
    figure = plot_attention(torch.zeros(3, 16, 16, dtype=torch.uint8), maps, (4, 4))
    outer, inner = (figure.axes[i].images[0].get_array() for i in (1, 3))
    expected = np.zeros((16, 16))
    expected[0:4, 4:8] = 1
    np.testing.assert_allclose(outer, expected)
    expected = np.zeros((16, 16))
    expected[np.ix_(np.arange(16) % 4 >= 2, np.arange(16) % 4 < 2)] = 1  # the third of four: lower left
    np.testing.assert_allclose(inner, expected)


@pytest.fixture
def known():
    """An image of 2×3 patches of 2×2 pixel tokens, and random attention."""
    maps = AttentionMaps([torch.rand(1, 6, 2, 4, 4) for _ in range(3)], [torch.rand(1, 5, 8, 8) for _ in range(3)])
    return torch.zeros(3, 8, 12, dtype=torch.uint8), maps


def test_a_patch_in_both_streams(known):
    image, maps = known
    figure = plot_nested(image, maps, (2, 3), patch=5, pixel=2, block=1)
    outer, inner = (figure.axes[i].images[0].get_array() for i in (1, 2))
    np.testing.assert_allclose(outer[::4, ::4], maps.outer[1][0].mean(dim=0)[5, 1:7].reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(inner, maps.inner[1][0, 4].mean(dim=0)[1].reshape(2, 2), rtol=1e-6)
    frame = figure.axes[0].patches[0]
    assert (frame.get_xy(), frame.get_width()) == ((3.5, 3.5), 4)  # the second row's second patch
    mean = plot_nested(image, maps, (2, 3), patch=1).axes[2].images[0].get_array()
    np.testing.assert_allclose(mean, maps.inner[-1][0, 0].mean(dim=(0, 1)).reshape(2, 2), rtol=1e-6)
    with pytest.raises(TITNError, match="no patch 7: choose one from 1 to 6"):
        plot_nested(image, maps, (2, 3), patch=7)
    with pytest.raises(TITNError, match="no pixel 5: choose one from 1 to 4"):
        plot_nested(image, maps, (2, 3), patch=1, pixel=5)
    with pytest.raises(TITNError, match="no pixel 0: choose one from 1 to 4"):
        plot_nested(image, maps, (2, 3), patch=1, pixel=0)
    with pytest.raises(TITNError, match="no inner attention"):
        plot_nested(image, AttentionMaps([], maps.outer), (2, 3), patch=1)


def test_every_head_of_every_block(known):
    _, maps = known
    axes = np.array(plot_heads(maps, (2, 3), token=-1).axes[:15]).reshape(5, 3)
    for head, block in ((0, 0), (3, 1), (4, 2)):
        shown = axes[head, block].images[0]
        np.testing.assert_allclose(shown.get_array(), maps.outer[block][0, head, 7, 1:7].reshape(2, 3), rtol=1e-6)
    highest = max(float(one[0, :, 7, 1:7].max()) for one in maps.outer)
    assert shown.get_clim() == pytest.approx((0, highest))
    axes = np.array(plot_heads(maps, (2, 3), patch=3).axes[:6]).reshape(2, 3)
    shown = axes[1, 2].images[0].get_array()
    np.testing.assert_allclose(shown, maps.inner[2][0, 2, 1].mean(dim=0).reshape(2, 2), rtol=1e-6)
    with pytest.raises(TITNError, match="no inner attention"):
        plot_heads(AttentionMaps([], maps.outer), (2, 3), patch=1)
    for patch in (0, 7):
        with pytest.raises(TITNError, match=f"no patch {patch}: choose one from 1 to 6"):
            plot_heads(maps, (2, 3), patch=patch)


def test_upsample_nearest():
    assert upsample_nearest(torch.tensor([[1.0, 2.0]]), (2, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_tokens_and_images(tmp_path):
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    save_figure(plot_tokens(image, create_model("titn_paper", depth=1).config), tmp_path / "tokens.png")
    save_figure(show_images(image[None].expand(5, -1, -1, -1), list("abcde"), columns=3), tmp_path / "grid.png")
    for name in ("tokens.png", "grid.png"):
        with Image.open(tmp_path / name) as figure:
            assert np.asarray(figure.convert("L")).std() > 20


def test_a_full_disk(tmp_path):
    (tmp_path / f"x.png.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(TITNError, match="the disk is full"):
        save_figure(plt.figure(), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_class_names_in_any_script_and_with_dollars(monkeypatch):
    names = ("猫_cat", "собака", "price_$5$", "x^2_$")
    monkeypatch.setattr(fonts, "FALLBACK_FONTS", ("STIXGeneral", "a font that is not installed"))
    with warnings.catch_warnings(action="ignore"):  # a script that no installed font has
        figure = plot_confusion(torch.eye(4, dtype=torch.long), names, "$a$")
    axis = figure.axes[0]
    ticks = axis.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == list(names)
    for text in (*ticks, *axis.get_yticklabels(), axis.title):
        assert not text.get_parse_math()
        assert text.get_family()[-1] == "STIXGeneral"
    shown = show_images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ["$5", "x^2_$ $"])
    with warnings.catch_warnings(action="ignore"):  # a script that no installed font has
        for drawn in (figure, shown):
            drawn.canvas.draw()
    plt.close("all")


def test_no_image_to_show():
    """As for the errors of a model that makes none."""
    assert show_images(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [], title="none").get_suptitle() == "none"


@pytest.mark.parametrize("classes", [("apple", "bicycle", "bottle", "chair", "sunflower"), tuple("0123456789")])
def test_the_names_below_a_confusion_matrix_do_not_overlap(classes):
    figure = plot_confusion(torch.eye(len(classes), dtype=torch.long), classes)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    plt.close(figure)
