"""Notebook 10 runs on a folder of other images: only `folder` changes."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import torch
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

from titn_lib.data import load_dataset

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_your_images.ipynb"
CLASSES = {"a<b> & 5$": 20, "собака": 11, "x_^$": 7}  # unequal, and names that are markup or formulas elsewhere


def make_folder(top):
    """Photographs of several sizes and modes, in splits of their own, with files that are no images."""
    rng = np.random.default_rng(0)
    for split, share in (("train", 1.0), ("Test", 0.5)):
        for number, (name, count) in enumerate(CLASSES.items()):
            (top / split / name / "camera").mkdir(parents=True)
            for i in range(int(share * count)):
                size = rng.integers(20, 60, 2)
                values = (rng.integers(0, 90, (*size, 3)) + 70 * number).astype(np.uint8)
                image = Image.fromarray(values).convert("RGBA" if i % 5 == 0 else "RGB")
                image.save(top / split / name / ("camera" if i % 2 else "") / f"{i}.{'png' if i % 5 == 0 else 'JPG'}")
    (top / "train" / "x_^$" / "holiday.jpg").write_bytes(b"half an image")
    (top / "train" / "notes.txt").write_text("mine", encoding="utf-8")
    (top / "Test" / ".DS_Store").write_bytes(b"x")
    return top


def test_the_folder_that_comes_with_the_course():
    """Sixty photographs, with their license."""
    folder = NOTEBOOK.parent / "images" / "clothes"
    data = load_dataset(str(folder))
    assert data.classes == ("coat", "dress", "shirt")
    labels = torch.cat([part.labels for part in (data.train, data.validation, data.test)])
    assert labels.bincount().tolist() == [20, 20, 20]
    assert len(torch.cat([part.images for part in (data.train, data.validation, data.test)]).unique(dim=0)) == 60
    assert "MIT License" in (folder / "LICENSE.txt").read_text(encoding="utf-8")


def test_notebook_10_runs_on_another_folder(tmp_path, monkeypatch, capsys):
    folder = make_folder(tmp_path / "mine")
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    changed = [
        cell.replace("folder = None", f"folder = Path({str(folder)!r})")
        .replace("epochs = 3\n", "epochs = 1\n")
        .replace("rounds=7", "rounds=1")
        .replace("skip_damaged = False", "skip_damaged = True")
        for cell in cells
    ]
    assert sum(new != old for new, old in zip(changed, cells, strict=True)) == 2
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))  # no second process
    names: dict[str, object] = {}
    for cell in changed:
        exec(compile(TransformerManager().transform_cell(cell), "cell", "exec"), names)
    plt.close("all")
    printed = capsys.readouterr().out
    assert "train: 20 a<b> & 5$ 8 x_^$ 11 собака\ntest: 10 a<b> & 5$ 3 x_^$ 5 собака\n" in printed
    assert "skipped: notes.txt" in printed
    assert "the same images: True" in printed
    assert "the same logits, bit for bit: True" in printed
    assert "the same test accuracy as ours: True" in printed
    assert names["data"].classes == tuple(sorted(CLASSES))
    assert (names["home"] / "matrix.png").exists()
