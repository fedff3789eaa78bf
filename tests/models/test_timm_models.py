"""The students in timm: the same models, under timm's names."""

import subprocess
import sys

import pytest
import timm
import torch

import titn_lib
from titn_lib import TITNError
from titn_lib.models.registry import TEACHERS

known_before = set(timm.list_models())
from titn_lib.models import timm_models  # noqa: E402


def images(model):
    return torch.randn(2, model.config.in_channels, *model.config.image_size)


@pytest.mark.parametrize("name", ["titn_paper", "titn_nano", "distilled_vit_paper", "cmt_nano"])
def test_the_same_model_as_create_model(name):
    torch.manual_seed(1)
    ours = titn_lib.create_model(name, num_classes=7).eval()
    torch.manual_seed(1)
    theirs = timm.create_model(name, num_classes=7).eval()
    assert theirs.config == ours.config
    assert torch.equal(theirs(images(ours) * 0 + 1), ours(images(ours) * 0 + 1))
    assert theirs.num_classes == 7


@pytest.mark.parametrize("weights", timm_models.timm_pretrained())
def test_the_same_weights_as_load_model(weights):
    ours, theirs = titn_lib.load_model(weights), timm.create_model(weights, pretrained=True)
    batch = images(ours)
    assert torch.equal(theirs(batch), ours(batch))
    assert theirs.preprocessing == ours.preprocessing
    fresh = timm.create_model(weights.split(".")[0], num_classes=ours.config.num_classes, in_chans=batch.shape[1])
    assert {name: w.shape for name, w in fresh.state_dict().items()}.keys() == ours.state_dict().keys()


def test_every_student_is_listed_and_no_model_of_timm_is_replaced():
    students = {name for name in titn_lib.list_models() if name not in TEACHERS}
    assert students <= set(timm.list_models())
    assert not {*students, *timm_models.VARIANTS} & known_before
    shipped = [weights for weights in titn_lib.list_pretrained() if weights.split("_")[0] == "titn"]
    assert set(timm.list_pretrained("titn*")) == set(shipped)
    assert timm.create_model("resnet18").__class__.__module__ == "timm.models.resnet"


def test_timms_names_of_settings():
    model = timm.create_model("titn_plus", in_chans=1, img_size=64, drop_path_rate=0.25, drop_rate=None)
    assert model.config.in_channels == 1
    assert model.config.image_size == (64, 64)
    assert model.config.drop_path == 0.25
    with pytest.raises(TITNError, match="unknown setting of titn_plus 'drop_rate'"):
        timm.create_model("titn_plus", drop_rate=0.1)


def test_timms_data_loaders_know_the_images():
    model = timm.create_model("titn_pico.mnist", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 32, 32)
    assert (config["mean"], config["std"]) == (model.preprocessing.mean, model.preprocessing.std)
    assert timm.get_pretrained_cfg("titn_pico.mnist").label_names == model.preprocessing.classes
    larger = timm.create_model("titn_mini.cifar10", pretrained=True, img_size=48, num_classes=3)
    assert timm.data.resolve_model_data_config(larger)["input_size"] == (3, 48, 48)
    assert larger.num_classes == 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("titn_nano", {}, "name the weights of titn_nano with their data set: .*titn_nano.cifar10, titn_nano.digits"),
        ("titn_nano.svhn", {}, "name the weights of titn_nano with their data set"),
        ("titn_paper", {}, "no weights of titn_paper are shipped: choose one of titn_mini-local.cifar10"),
        (
            "titn_pico",
            {"depth": 2},
            "titn_pico.mnist can be loaded with another num_classes or img_size.*leave out depth",
        ),
        ("titn_pico", {"in_chans": 3}, "leave out in_chans"),
    ],
)
def test_weights_that_there_are_not(name, settings, message):
    with pytest.raises(TITNError, match=message):
        timm.create_model(name, pretrained=True, **settings)


def test_without_timm_one_sentence():
    code = "import sys; sys.modules['timm'] = None\nimport titn_lib.models.timm_models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TITNError: models in timm need one more package: pip install timm" in done.stderr
