"""hubconf.py: every shipped model through torch.hub, from this checkout."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import titn_lib

TOP = Path(__file__).parent.parent
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}


def load_hubconf():
    spec = importlib.util.spec_from_file_location("hubconf_here", TOP / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hub(entry, *arguments, **options):
    return torch.hub.load(str(TOP), entry, *arguments, source="local", **options)


@pytest.mark.parametrize("weights", titn_lib.list_pretrained())
def test_shipped_weights_by_their_entry(weights):
    name, data = weights.replace("-", "_").split(".")
    model, expected = hub(name, weights=data), titn_lib.load_model(weights)
    assert model.config == expected.config
    assert model.preprocessing == expected.preprocessing
    images = torch.randn(2, model.config.in_channels, *model.config.image_size)
    assert torch.equal(model(images), expected(images))


@pytest.mark.parametrize("entry", ["titn_paper", "titn_nano", "titn_mini", "titn_pico", "vgg7_bn"])
def test_new_models_take_settings(entry):
    assert hub(entry, num_classes=7, in_channels=2).config == titn_lib.create_model(
        entry, num_classes=7, in_channels=2
    ).config  # fmt: skip


def test_local_perception_is_there_without_weights_too():
    assert hub("titn_mini_local").config.local_perception
    assert hub("titn_mini_conv", weights="cifar10").config.mlp_convolution
    assert hub("titn_mini_local", weights="cifar10", num_classes=3).config.num_classes == 3


def test_any_model_by_name():
    assert hub("create_model", "cmt_nano", num_classes=3).config.name == "cmt_nano"
    assert hub("load_model", "titn_nano.digits").preprocessing.data == "digits"


def test_every_entry_is_described_and_names_its_weights():
    hubconf = load_hubconf()
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"]  # torch.hub.list
    assert sorted(entries) == sorted(hubconf.__all__)
    assert all(getattr(hubconf, entry).__doc__ for entry in entries)
    for weights in titn_lib.list_pretrained():
        name, data = weights.replace("-", "_").split(".")
        assert f'"{data}"' in getattr(hubconf, name).__doc__, weights


def test_it_needs_only_the_dependencies_that_it_names():
    """The other requirements of the package are made unimportable."""
    packages = [line.split(">")[0] for line in PROJECT["project"]["dependencies"]]
    code = f"""
import sys
sys.path.insert(0, {str(TOP)!r})
source = open({str(TOP / "hubconf.py")!r}, encoding="utf-8").read()
listed = eval(source.split("dependencies = ")[1].split("]")[0] + "]")
named = [{IMPORTED_AS!r}.get(package, package.replace("-", "_")) for package in {packages!r}]
assert set(listed) <= set(named), set(listed) - set(named)
for name in set(named) - set(listed):
    sys.modules[name] = None
import hubconf
assert hubconf.titn_nano(weights="digits").preprocessing.data == "digits"
hubconf.vgg7_bn()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
