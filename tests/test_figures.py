"""Figures: what they show is what they were given."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from titn_lib import TITNError, create_model
from titn_lib.figures import enlarge, plot_attention, plot_confusion, plot_tokens, save_figure, show_pictures

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_confusion_counts():
    labels, answers = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    figure = plot_confusion(labels, answers, ("a", "b", "c"))
    shown = figure.axes[0].collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(shown, [[0.5, 0.5, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "", "", "1", "", "1", "", "2"]


def test_attention_is_drawn_where_it_belongs():
    """The class token looks at the second patch alone; in every patch the third pixel gets all attention."""
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


def test_enlarge():
    assert enlarge(torch.tensor([[1.0, 2.0]]), (2, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_tokens_and_pictures(tmp_path):
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    save_figure(plot_tokens(image, create_model("titn_paper", depth=1).config), tmp_path / "tokens.png")
    save_figure(show_pictures(image[None].expand(5, -1, -1, -1), list("abcde"), columns=3), tmp_path / "grid.png")
    for name in ("tokens.png", "grid.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 20


def test_a_full_disk(tmp_path):
    (tmp_path / "x.png.part").symlink_to("/dev/full")
    with pytest.raises(TITNError, match="the disk is full"):
        save_figure(plt.figure(), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
