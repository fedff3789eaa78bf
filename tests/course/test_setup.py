"""What the notebooks share."""

import matplotlib.pyplot as plt
import torch

import titn_lib
from titn_lib.course.diagram import draw_model
from titn_lib.course.setup import example_images, setup, sliders


def test_setup_prints_the_version_and_returns_the_folder_of_runs(capsys):
    runs = setup()
    assert runs.name == "runs"
    assert "titn_lib" in capsys.readouterr().out


def test_example_images_need_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    images = example_images(5)
    assert (images.shape, images.dtype) == ((5, 3, 32, 32), torch.uint8)
    assert len({image.sum().item() for image in images}) == 5
    assert list(tmp_path.iterdir()) == []


def test_example_images_are_cifars_where_it_is(real_data):
    from titn_lib.data.datasets import load_dataset

    assert torch.equal(example_images(3), load_dataset("cifar10").train.images[:3])


def test_sliders_draw_again():
    plt.close("all")
    drawn = []

    def draw(side=3, color=1):
        drawn.append((side, color))
        figure, axis = plt.subplots(figsize=(1, 1))
        axis.set_title(f"{side} {color}")
        return figure

    box = sliders(draw, side=[2, 3, 4], color=[7, 8])
    side, color, image = box.children
    assert drawn == [(3, 7)]
    before = image.value
    side.value = 4
    color.value = 8
    assert drawn[1:] == [(4, 7), (4, 8)]
    assert image.value != before
    assert image.value[:4] == b"\x89PNG"
    assert plt.get_fignums() == []


def test_the_diagram_shows_the_settings():
    figure = draw_model(titn_lib.create_model("titn_paper", num_classes=7).config)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"16 × 16 × 12", "18 × 192", "block 12", "row 17", "class head\nLN, 192 → 7"} <= set(texts)
    without = draw_model(titn_lib.create_model("tnt_paper").config)
    assert not [text for text in without.axes[0].texts if "distillation" in text.get_text()]
    plt.close("all")
