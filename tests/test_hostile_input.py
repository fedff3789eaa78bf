"""Files, arguments and values that make no sense, or do harm: each gets one sentence, and nothing is lost."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_parameter_registration_hook

from titn_lib import TITNError, create_model, load_model, save_model
from titn_lib.__main__ import main
from titn_lib.data.datasets import data_dir, load_dataset
from titn_lib.data.transforms import Preprocessing
from titn_lib.io import require_no_input, write_atomically
from titn_lib.models.inference import choose_device
from titn_lib.models.weights import PRETRAINED_DIR
from titn_lib.training.distributed import choose_precision, start_fabric
from titn_lib.validation import to_2tuple


def fails(capsys, *arguments):
    """What a command says that fails, without a traceback."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stopped:  # by argparse
        code = stopped.code
    assert code in (1, 2)
    return capsys.readouterr().err


@pytest.fixture
def edited(tmp_path):
    """Writes pretrained weights with other settings inside."""

    def edit(config=None, preprocessing=None):
        with safe_open(PRETRAINED_DIR / "titn_nano.digits.safetensors", framework="pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        for part, changes in (("config", config), ("preprocessing", preprocessing)):
            metadata[part] = json.dumps(json.loads(metadata[part]) | (changes or {}))
        save_file(weights, tmp_path / "edited.safetensors", metadata=metadata)
        return tmp_path / "edited.safetensors"

    return edit


@pytest.mark.parametrize(
    "config",
    [
        {"num_classes": 10**30},
        {"num_classes": 2**40},
        {"depth": 10**7},
        {"outer_width": 2**62},
        {"inner_width": 10**400},
        {"mlp_ratio": 1e300},
        {"image_size": [10**12, 10**12]},
        {"patch_size": 2**63},
    ],
    ids=str,
)
def test_sizes_that_cannot_fit_are_refused_before_a_model_is_built(edited, config):
    with pytest.raises(TITNError, match="don't fit the settings"):
        load_model(edited(config))


def test_a_stage_of_many_blocks_is_not_built(tmp_path):
    """A depth that stands in a list, where nothing tells it from a width."""
    model, made = create_model("cmt_nano"), []
    metadata = {"family": "cmt", "config": json.dumps(asdict(model.config) | {"stages": [[48, 200, 3, 4]]})}
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "edited.safetensors", metadata=metadata)
    with (
        register_module_parameter_registration_hook(lambda *_: made.append(1)),
        pytest.raises(TITNError, match="don't fit the settings"),
    ):
        load_model(tmp_path / "edited.safetensors")
    assert len(made) < 1_000


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"classes": ["a", "b"]},
        {"classes": list(range(10))},
        {"mean": ["gray"]},
        {"mean": [float("nan")]},
        {"std": [0]},
        {"mean": [0.5, 0.5, 0.5]},
        {"data": 7},
    ],
    ids=str,
)
def test_class_names_and_normalization_that_do_not_fit_the_model(edited, preprocessing):
    with pytest.raises(TITNError, match=r"class names or the normalization|not the settings"):
        load_model(edited(preprocessing=preprocessing))


def test_settings_that_fit_are_still_read(edited):
    assert load_model(edited()).preprocessing.data == "digits"


@pytest.mark.parametrize("fault", ["header", "count", "none"])
def test_mnist_files_of_the_right_length_with_a_wrong_header(tmp_path, monkeypatch, fault):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.array([2051, count, 28, 28], ">u4").tobytes() + bytes(28 * 28 * count)
        if fault == "header":
            images = b"PK" + images[2:]
        labels = np.array([2049, count - (fault == "count")], ">u4").tobytes() + bytes(i % 10 for i in range(count))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    monkeypatch.setenv("TITN_DATA", str(tmp_path))
    if fault == "none":
        assert len(load_dataset("mnist").test) == 10_000
    else:
        with pytest.raises(TITNError, match="is damaged"):
            load_dataset("mnist")


def test_a_data_folder_of_nobody(monkeypatch):
    monkeypatch.setenv("TITN_DATA", "~nobody_at_all/data")
    with pytest.raises(TITNError, match="no such home folder"):
        data_dir()


def test_arguments_that_no_system_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "must be below 2**64" in fails(capsys, "distill", "--seed", 10**30, "--out", "x")
    assert "at most 16,384" in fails(capsys, "distill", "--image-size", 1_000_000, "--out", "x")
    with pytest.raises(TITNError, match="at most 16,384"):
        to_2tuple(10**6)
    for name in ("", " ", "a\0b"):
        assert "must not be empty or contain a NUL" in fails(capsys, "distill", "--out", name)
        assert "must not be empty or contain a NUL" in fails(capsys, "distill", "--data", name)
        assert "must not be empty or contain a NUL" in fails(capsys, "predict", name, "--weights", "titn_nano.digits")
    with pytest.raises(TITNError):
        load_model("a\0b")
    assert "too long" in fails(
        capsys, "explore", picture_in(tmp_path), "--weights", "titn_nano.digits", "--out", "a" * 999
    )
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["picture.png"]


def picture_in(folder):
    Image.new("L", (16, 16), 99).save(folder / "picture.png")
    return folder / "picture.png"


CALLS = """
import numpy as np, torch, titn_lib
from titn_lib.models.inference import predict
model = titn_lib.load_model("titn_nano.digits")
images = torch.zeros(1, 1, 16, 16)
for call in (
    lambda: model(images.numpy()), lambda: model([images]), lambda: model(None),
    lambda: predict(model, np.zeros((1, 1, 16, 16), np.uint8), model.preprocessing),
    lambda: model(images.double()), lambda: model(images.half()), lambda: model(images.to("meta")),
    lambda: titn_lib.create_model("vgg7_bn")(None),
):
    try:
        call()
    except titn_lib.TITNError as problem:
        print(str(problem).split(":")[0])
with torch.autocast("cpu", torch.bfloat16):
    print(*model(images.bfloat16()).shape)
print(*model.double()(images.double()).shape)
"""


def test_a_model_called_with_something_else():
    """In a process of its own: the tests' checks of shapes would refuse it first."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", CALLS], capture_output=True, text=True)
    kinds = ["ndarray", "list", "NoneType", "ndarray"]
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        *(f"images must be a tensor, not {kind}" for kind in kinds),
        *(f"the images are torch.{kind} and the model's weights are torch.float32" for kind in ("float64", "float16")),
        "the images are on meta and the model is on cpu",
        "images must be a tensor, not NoneType",
        "1 10",
        "1 10",
    ]


def test_no_output_takes_the_place_of_an_input(tmp_path, capsys):
    picture = picture_in(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_model(load_model("titn_nano.digits"), weights)
    os.link(weights, tmp_path / "also.html")
    before = picture.read_bytes(), weights.read_bytes()
    for out in (picture, weights, tmp_path / "also.html"):
        assert "would be overwritten" in fails(capsys, "explore", picture, "--weights", weights, "--out", out)
    assert (picture.read_bytes(), weights.read_bytes()) == before
    require_no_input(tmp_path / "new.html", [picture, weights, None])
    evaluate = ("evaluate", weights, "--confusion", weights)
    assert "would be overwritten" in fails(capsys, *evaluate)


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes of Unix")
def test_a_device_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link_to_pipe").symlink_to(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("pipe", "link_to_pipe"):
        write_atomically(tmp_path / name, b"abc")
        assert os.read(reader, 9) == b"abc"
        assert (tmp_path / name).is_fifo()
    os.close(reader)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == content
    with pytest.raises(TITNError, match="that is a folder"):
        write_atomically(tmp_path, b"abc")


def test_too_little_memory_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("titn_lib.data.images.load_image", full)
    assert "not enough memory" in fails(capsys, "predict", picture_in(tmp_path), "--weights", "titn_nano.digits")


@pytest.mark.parametrize("device", ["tpu", torch.device("cuda", 99)], ids=str)
def test_a_device_that_is_none(device):
    with pytest.raises(TITNError, match="unknown device"):
        start_fabric("32-true", device)
    assert choose_device(torch.device("cpu")) == "cpu"


def test_weights_that_are_not_finite(tmp_path, capsys):
    model = load_model("titn_nano.digits")
    for weight in model.parameters():
        weight.data.fill_(float("nan"))
    save_model(model, tmp_path / "nan.safetensors")
    arguments = ("--weights", tmp_path / "nan.safetensors", "--out", tmp_path / "page.html")
    for command in ("explore", "predict"):
        options = arguments if command == "explore" else arguments[:2]
        assert "weights that aren't finite numbers" in fails(capsys, command, picture_in(tmp_path), *options)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "../../etc/passwd", "", "a/", "."], ids=repr)
def test_a_dropped_files_name_is_never_a_path(name, tmp_path):
    pytest.importorskip("anywidget")
    from titn_lib.interpret.explorer import Explorer

    explorer = Explorer(load_model("titn_nano.digits"), torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    sent = []
    explorer.send = sent.append
    explorer._receive(None, {"image": name}, [picture_in(tmp_path).read_bytes()])
    assert not sent
    assert explorer.data["images"][-1]["title"] == (name.rpartition("/")[2][:100] or "image")
    for buffers in ([], [b""], [b"no image"]):
        explorer._receive(None, {"image": name}, buffers)
    assert len(sent) == 3
    assert all("tmp" not in message["error"] for message in sent)
    assert len(explorer.data["images"]) == 2


def test_a_terminal_that_lacks_characters(tmp_path):
    """A class name in another script, on a terminal of another encoding."""
    model = create_model("titn_nano", depth=1, num_classes=2)
    names = Preprocessing("animals", ("猫", "собака"), (0.5,) * 3, (0.5,) * 3)
    save_model(model, tmp_path / "m.safetensors", names)
    command = ["-m", "titn_lib", "predict", str(picture_in(tmp_path)), "--weights", str(tmp_path / "m.safetensors")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run([sys.executable, "-W", "ignore", *command], capture_output=True, env=environment)
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"?" in run.stdout


def test_apples_gpus(monkeypatch, capsys):
    """Simulated: no such GPU is here. They are chosen by themselves, and compute in float32."""
    assert choose_precision("mps") == "32-true"
    if not torch.backends.mps.is_available():
        with pytest.raises(TITNError, match="no Apple GPU"):
            start_fabric("auto", "mps")
    asked = {}

    class Stop(Exception):
        pass

    def fabric(**options):
        asked.update(options)
        raise Stop

    monkeypatch.setattr("titn_lib.training.distributed.Fabric", fabric)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Stop):
        start_fabric("auto")
    assert (asked["accelerator"], asked["precision"]) == ("mps", "32-true")
    with pytest.raises(TITNError, match="float32"):
        start_fabric("bf16-mixed", "mps")
