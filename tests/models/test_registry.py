"""Models by name: sizes, settings, files."""

import json
import os
import pkgutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from titn_lib import TITNError, count_macs, count_parameters, create_model, list_models, load_model, save_model
from titn_lib.data.transforms import Preprocessing
from titn_lib.models import registry, related, weights
from titn_lib.models.titn import TITN, TITNConfig
from titn_lib.models.weights import read_weights, resample_pos_embed
from titn_lib.validation import check_settings

PREPROCESSING = Preprocessing("digits", ("a", "b", "c"), (0.5,), (0.25,))


@pytest.mark.parametrize(
    "name", [name for name in list_models() if "224" not in name and name[:5] not in ("tnt_s", "tnt_b")]
)
def test_every_model_runs_and_loads_from_its_file(name, tmp_path):
    model = create_model(name, num_classes=3, in_channels=1, image_size=(32, 32)).eval()
    save_model(model, tmp_path / "m.safetensors", PREPROCESSING)
    again = load_model(tmp_path / "m.safetensors")
    images = torch.randn(2, 1, 32, 32)
    assert not again.training
    assert torch.equal(again(images), model(images))
    assert again.config == model.config
    assert again.preprocessing == PREPROCESSING


def test_the_vits_have_the_documented_sizes():
    """The published code has 5,397,604 and 5,421,320: `models/vit.py` says why."""
    assert count_parameters(create_model("vit_paper", num_classes=100)) == 5_398_948
    assert count_parameters(create_model("distilled_vit_paper", num_classes=100)) == 5_419_016


def test_frozen_parameters_are_not_counted():
    model = create_model("titn_nano", depth=1)
    count = count_parameters(model)
    model.heads.requires_grad_(False)
    assert count_parameters(model) == count - 2 * (2 * 128 + 128 * 10 + 10)


def test_a_file_comes_before_shipped_weights_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = create_model("titn_nano", depth=1)
    save_model(model, "titn_nano.digits")
    assert load_model("titn_nano.digits").config == model.config


def test_an_unknown_name_suggests_the_closest():
    with pytest.raises(TITNError, match="did you mean 'titn_paper'"):
        create_model("titn_papr")


def test_half_precision_files_are_half_as_large(tmp_path):
    model = create_model("titn_nano")
    save_model(model, tmp_path / "full.safetensors")
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.02)
    assert load_model(tmp_path / "half.safetensors").heads.class_head[1].weight.dtype == torch.float32


def test_half_precision_files_keep_whole_numbers(tmp_path):
    """Batch normalization counts its batches: float16 has no 4,001."""
    model = create_model("vgg7_bn")
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    model.load_state_dict({**model.state_dict(), **{name: torch.tensor(4001) for name in counters}})
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_model(tmp_path / "half.safetensors").state_dict()
    assert counters
    assert all(loaded[name] == 4001 for name in counters)


def test_position_embeddings_are_interpolated():
    """The grid is resampled as an image is; class and distillation rows stay as they were."""
    grid, first, last = torch.randn(3, 5, 2), torch.randn(1, 2), torch.randn(1, 2)
    table = resample_pos_embed(torch.cat([first, grid.reshape(15, 2), last]), (3, 5), (6, 4))
    expected = F.interpolate(grid.permute(2, 0, 1)[None], size=(6, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table[1:-1].reshape(6, 4, 2), expected[0].permute(1, 2, 0))
    assert torch.equal(table[[0, -1]], torch.cat([first, last]))


@pytest.mark.parametrize("name", ["titn_paper", "titn_nano", "distilled_vit_paper"])
def test_weights_load_at_another_size(name, tmp_path):
    model = create_model(name, depth=1)
    save_model(model, tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", image_size=(48, 64))
    assert larger(torch.zeros(1, 3, 48, 64)).shape == (1, 10)
    same = load_model(tmp_path / "m.safetensors", image_size=(32, 32))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(same(images), model.eval()(images))
    with pytest.raises(TITNError, match="can't be cut into patches"):
        load_model(tmp_path / "m.safetensors", image_size=(47, 64))


def test_invalid_files_are_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_model(create_model("titn_nano", depth=1), whole)

    with pytest.raises(TITNError, match="there is no weights file"):
        load_model(tmp_path / "none.safetensors")

    for content in (b"", b"not weights", whole.read_bytes()[:-1000], whole.read_bytes()[:50]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(TITNError, match=r"bad\.safetensors is not a whole safetensors file"):
            load_model(tmp_path / "bad.safetensors")

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(TITNError, match="not the settings of a titn_lib model"):
        load_model(tmp_path / "foreign.safetensors")

    config = json.dumps({"name": "titn_nano", "image_size": [32, 32]})
    odd = {"family": "titn", "config": config, "preprocessing": json.dumps({"classes": ["a"]})}
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata=odd)
    with pytest.raises(TITNError, match="not the settings of a titn_lib model"):
        load_model(tmp_path / "odd.safetensors")

    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={"family": "titn", "config": config})
    with pytest.raises(TITNError, match="don't fit the settings"):
        load_model(tmp_path / "odd.safetensors")


def test_saving_again_keeps_the_preprocessing(tmp_path):
    save_model(create_model("titn_nano", depth=1, num_classes=3), tmp_path / "m.safetensors", PREPROCESSING)
    save_model(load_model(tmp_path / "m.safetensors"), tmp_path / "again.safetensors")
    assert load_model(tmp_path / "again.safetensors").preprocessing == PREPROCESSING


@pytest.mark.parametrize("name", ["titn_nano", "vgg7_bn", "cmt_nano"])
def test_another_number_of_classes_gets_new_heads(name, tmp_path):
    model = create_model(name, num_classes=3)
    save_model(model, tmp_path / "m.safetensors", PREPROCESSING)
    other = load_model(tmp_path / "m.safetensors", num_classes=5)
    assert other(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert other.preprocessing == replace(PREPROCESSING, classes=tuple("01234"))
    before, after = model.state_dict(), other.state_dict()
    fresh = [key for key in before if before[key].shape != after[key].shape]
    assert fresh
    assert all("head" in key and before[key].shape[0] == 3 for key in fresh)
    assert all(torch.equal(before[key], after[key]) for key in before if key not in fresh)
    save_model(other, tmp_path / "five.safetensors")
    assert load_model(tmp_path / "five.safetensors").config.num_classes == 5


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path):
    model = create_model("titn_nano", depth=1, num_classes=3)
    with pytest.raises(TITNError, match="a model of 3 classes can't be saved with 2 names"):
        save_model(model, tmp_path / "m.safetensors", replace(PREPROCESSING, classes=("a", "b")))
    model.heads.class_head[1] = torch.nn.Linear(128, 5)
    with pytest.raises(TITNError, match="was modified after create_model"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_number_is_height_and_width(tmp_path):
    model = create_model("titn_nano", image_size=64)
    assert model.config.image_size == (64, 64)
    save_model(model, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors", image_size=48).config.image_size == (48, 48)


def test_only_models_of_this_library_are_saved(tmp_path):
    class Mine(TITN):
        """A subclass that isn't registered."""

    with pytest.raises(TITNError, match="a Mine is not one of this library's models"):
        save_model(Mine(create_model("titn_nano", depth=1).config), tmp_path / "m.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    """A full disk: /dev/full takes the place of the unfinished file."""
    target = tmp_path / "m.safetensors"
    save_model(create_model("titn_nano", depth=1), target)
    before = target.read_bytes()
    (tmp_path / f"m.safetensors.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(TITNError, match=r"cannot write .*m.safetensors: the disk is full"):
        save_model(create_model("titn_nano", depth=2), target)
    assert target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("vgg7_bn", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ("care_nano", {"num_classes": -1}, "num_classes must be at least 1"),
        ("care_nano", {"patch_size": 0}, "patch_size must be at least 1"),
        ("fusion_nano", {"patch_size": 0}, "patch_size must be at least 1"),
        ("cmt_nano", {"stem_stride": 0}, "stem_stride must be at least 1"),
        ("cmt_nano", {"stages": ()}, "stages must be one or more"),
        ("vitae_nano", {"stages": ()}, "stages must be one or more"),
        ("care_nano", {"image_size": 36}, "an image_size that 8 divides"),
        ("titn_nano", {"drop_path": float("nan")}, "drop_path must be a number"),
    ],
)
def test_invalid_settings(name, settings, says):
    with pytest.raises(TITNError, match=says):
        create_model(name, **settings)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"units": 1.5}, "units must be an integer, not 1.5"),
        ({"units": True}, "units must be an integer, not True"),
        ({"ratio": None}, "ratio must be a number, not None"),
        ({"bias": 2}, "bias must be True or False, not 2"),
    ],
)
def test_settings_of_another_type(wrong, says):
    @dataclass
    class Settings:  # the library's own are checked by the tests' type checker already
        units: int = 1
        ratio: float = 1
        bias: bool = False

    check_settings(Settings())
    with pytest.raises(TITNError, match=says):
        check_settings(Settings(**wrong))


def test_numpy_numbers_are_saved_as_python_numbers(tmp_path):
    model = create_model("titn_nano", depth=np.int64(1), num_classes=np.int32(3), drop_path=np.float32(0.5))
    save_model(model, tmp_path / "m.safetensors", PREPROCESSING)
    assert load_model(tmp_path / "m.safetensors").config == model.config
    with pytest.raises(TITNError, match=r"can't be kept as torch.int8"):
        save_model(model, tmp_path / "m.safetensors", dtype=torch.int8)


def test_a_damaged_file_is_reported_as_damaged(tmp_path):
    save_model(create_model("titn_nano", depth=1, num_classes=3), tmp_path / "m.safetensors", PREPROCESSING)
    weights, about = read_weights(tmp_path / "m.safetensors")
    for name in ("blocks.0.inner.mlp.0.weight", "patch_embedding.pos_embed"):
        changed = {key: tensor[1:] if key.endswith(name) else tensor for key, tensor in weights.items()}
        save_file(changed, tmp_path / "cut.safetensors", metadata=about)
        for wanted in ({}, {"num_classes": 4}, {"image_size": 64}):
            with pytest.raises(TITNError, match="don't fit the settings beside them: the file is damaged"):
                load_model(tmp_path / "cut.safetensors", **wanted)
    save_file(weights, tmp_path / "odd.safetensors", metadata={**about, "preprocessing": '"a"'})
    with pytest.raises(TITNError, match="not the settings of a titn_lib model"):
        load_model(tmp_path / "odd.safetensors")


def test_the_macs_of_a_modified_model_are_not_counted():
    model = create_model("titn_nano", depth=2)
    assert count_macs(model) > 0
    model.blocks = model.blocks[:1]
    with pytest.raises(TITNError, match="was modified after create_model"):
        count_macs(model)


def test_a_registered_class_is_made_saved_and_loaded(monkeypatch, tmp_path):
    class Mine(TITN):
        """A class that the library doesn't know."""

    class MyConfig(TITNConfig):
        """Its settings."""

    for table in ("FAMILIES", "MODELS", "TEACHERS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))
    monkeypatch.setattr(weights, "FAMILIES", registry.FAMILIES)
    registry.MODELS["mine"] = MyConfig(name="mine", depth=1)
    with pytest.raises(TITNError, match="no class is known for MyConfig: call register_model"):
        create_model("mine")
    registry.register_model("mine", Mine, MyConfig, {"mine": MyConfig(name="mine", depth=1)})
    assert list_models().index("mine") < list_models().index("vgg7_bn")
    save_model(create_model("mine"), tmp_path / "m.safetensors")
    assert type(load_model(tmp_path / "m.safetensors")) is Mine


def test_every_file_of_related_systems_registers_its_models():
    for module in pkgutil.iter_modules(related.__path__):
        presets = import_module(f"{related.__name__}.{module.name}").PRESETS
        assert presets
        assert set(presets) <= {*list_models()}


def test_saved_weights_do_not_hold_the_path_of_the_data(tmp_path):
    """It may contain a user's name."""
    for path in ("/home/someone/cats", r"C:\Users\someone\cats", "cats"):
        preprocessing = Preprocessing(path, tuple("abcdefghij"), (0.5,) * 3, (0.5,) * 3)
        save_model(create_model("titn_nano"), tmp_path / "m.safetensors", preprocessing)
        assert load_model(tmp_path / "m.safetensors").preprocessing.data == "cats"
        assert b"someone" not in (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.usefixtures("unchecked")  # it can't see through the checks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["titn_nano", "vit_paper", "revit_nano", "care_nano", "mvt_nano", "cmt_nano", "adavit_nano"]
)
def test_the_older_onnx_exporter_knows_every_operation(name):
    """It converts the graph before it needs the package onnx, which may be missing."""
    model = create_model(name).eval()
    missing = pytest.raises(torch.onnx.errors.OnnxExporterError, match="Module onnx is not installed!")
    with nullcontext() if find_spec("onnx") else missing:
        torch.onnx.export(model, (torch.randn(1, 3, *model.config.image_size),), BytesIO(), dynamo=False)
