"""What the notebooks share."""

import matplotlib.pyplot as plt
import torch

from titn_lib.course.setup import example_images, setup, sliders


def test_setup_says_where_we_are(capsys):
    runs = setup()
    assert runs.name == "runs"
    assert "titn_lib" in capsys.readouterr().out


def test_example_pictures_need_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    pictures = example_images(5)
    assert (pictures.shape, pictures.dtype) == ((5, 3, 32, 32), torch.uint8)
    assert len({picture.sum().item() for picture in pictures}) == 5
    assert list(tmp_path.iterdir()) == []


def test_example_pictures_are_real_where_they_are(real_data):
    from titn_lib.data.datasets import load_dataset

    assert torch.equal(example_images(3), load_dataset("cifar10").train.images[:3])


def test_sliders_draw_again():
    plt.close("all")
    drawn = []

    def draw(side=3, colour=1):
        drawn.append((side, colour))
        figure, axis = plt.subplots(figsize=(1, 1))
        axis.set_title(f"{side} {colour}")
        return figure

    box = sliders(draw, side=[2, 3, 4], colour=[7, 8])
    side, colour, picture = box.children
    assert drawn == [(3, 7)]
    before = picture.value
    side.value = 4
    colour.value = 8
    assert drawn[1:] == [(4, 7), (4, 8)]
    assert picture.value != before
    assert picture.value[:4] == b"\x89PNG"
    assert plt.get_fignums() == []
