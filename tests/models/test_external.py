"""Networks from elsewhere: timm's, its pretrained TNT as ours, and networks of one's own as teachers."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from titn_lib import TITNError, create_model, interpret, load_model, save_model
from titn_lib.data import load_dataset, normalize
from titn_lib.data.mixing import MixedTargets
from titn_lib.interpret import require_attention
from titn_lib.interpret.explorer import explorer_data, page_html
from titn_lib.losses import Objective, freeze, teacher_forward
from titn_lib.models.external import ExternalTeacher, TimmClassifier, describe_teacher
from titn_lib.training import make_run, train, train_comparison
from titn_lib.training.distributed import start_fabric
from titn_lib.training.networks import prepare_teacher
from titn_lib.training.recipes import teacher_run

SMALL = {"epochs": 1, "train_images": 128, "test_images": 64, "batch_size": 32}


class Output:
    """As Hugging Face's networks return it."""

    def __init__(self, logits):
        self.logits = logits


class Own(nn.Module):
    """A network of one's own: the logits in an object, and a normalization of its own."""

    def __init__(self, classes=10):
        super().__init__()
        self.linear = nn.Linear(16 * 16, classes)

    def forward(self, images):
        return Output(self.linear(images.flatten(1)))


@pytest.fixture
def pretrained(monkeypatch):
    """timm's "pretrained" weights without a download: random, but for every call the same."""
    create = timm.create_model

    def create_offline(name, pretrained=False, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return create(name.split(".")[0], pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", create_offline)


# --- timm's TNT as ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("tnt_s_patch16_224.in1k", "tnt_s"),
        ("tnt_s_legacy_patch16_224.in1k", "tnt_s"),
        ("tnt_b_patch16_224.in1k", "tnt_b"),
    ],
)
def test_timms_pretrained_tnt_is_loaded_by_name(pretrained, name, ours, tmp_path):
    """The same logits, in the original's classes and normalization; and it can be saved and loaded as ours."""
    theirs, model = timm.create_model(name, pretrained=True).eval(), load_model(f"timm:{name}")
    assert (model.config.name, model.config.num_classes) == (ours, 1000)
    assert model.preprocessing.mean == model.preprocessing.std == (0.5,) * 3
    assert model.preprocessing.classes[1].startswith("goldfish")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert (model(images) - theirs(images)).abs().max() < 1e-5
    if ours == "tnt_s":
        save_model(model, tmp_path / "m.safetensors")
        assert torch.equal(load_model(tmp_path / "m.safetensors").heads.class_head[1].weight, theirs.head.weight)


def test_a_file_of_timms_tnt_with_other_classes(tmp_path):
    theirs = timm.create_model("tnt_s_patch16_224", num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path / "mine.safetensors")
    assert model.preprocessing.classes == tuple("0123456")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert (model(images) - theirs(images)).abs().max() < 1e-5
    assert load_model(tmp_path / "mine.safetensors", image_size=32, num_classes=3).config.num_classes == 3


def test_a_tnt_of_another_size_is_refused(tmp_path):
    weights = timm.create_model("tnt_s_patch16_224").state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith("blocks.11.")}
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(TITNError, match="only the weights of tnt_s and tnt_b"):
        load_model(tmp_path / "odd.safetensors")


# --- timm's ViT and DeiT as ours


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 7, "img_size": (48, 64), "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}),
    ],
)
def test_timms_vit_has_attention_maps(name, settings):
    """The same logits, and the attention that timm itself computes."""
    theirs = timm.create_model(name, **settings).eval()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.1)
    model, seen = require_attention(theirs), []
    theirs.blocks[1].attn.fused_attn = False
    theirs.blocks[1].attn.attn_drop.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    images = torch.randn(2, *(model.config.in_channels, *model.config.image_size))
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-4)
        attention = interpret.attention(theirs, images).outer[1]
    order = [0, *range(2, attention.shape[-1]), 1] if model.config.distillation_token else slice(None)
    torch.testing.assert_close(attention, seen[0][:, :, order][..., order])
    assert model.embed.weight.data_ptr() == theirs.patch_embed.proj.weight.data_ptr()  # shared
    assert len(model.preprocessing.classes) == settings.get("num_classes", 1000)


def test_the_explorer_shows_a_vit_of_timm():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=48, depth=1).eval()
    data = explorer_data(network, torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8))
    assert "timm:vit_tiny_patch16_224" in page_html(data, "ViT")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("deit3_small_patch16_224", {}), ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False})],
)
def test_a_vit_with_other_parts_has_none(name, settings):
    with pytest.raises(TITNError, match=r"VisionTransformer has no attention maps: use a student .* or timm's ViT"):
        require_attention(timm.create_model(name, depth=1, **settings).eval())


# --- other networks of timm


def test_a_network_of_timm_is_made_saved_and_loaded(pretrained, tmp_path):
    model = load_model("timm:resnet18.a1_in1k", num_classes=4, image_size=32)
    assert isinstance(model, TimmClassifier)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    theirs = timm.create_model("resnet18", num_classes=1000).state_dict()
    assert torch.equal(model.network.conv1.weight, theirs["conv1.weight"])
    save_model(model, tmp_path / "m.safetensors")
    again, images = load_model(tmp_path / "m.safetensors"), torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_network_of_timm_takes_the_images_of_the_run(name):
    model = create_model(f"timm:{name}", num_classes=3, in_channels=1, image_size=64).eval()
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)


def test_timm_is_asked_for_a_network_that_it_lacks(monkeypatch):
    with pytest.raises(TITNError, match=r"timm .* has no network 'resnet81'"):
        create_model("timm:resnet81")
    with pytest.raises(TITNError, match="has no network"):
        make_run("digits", teacher="timm:resnet81")

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(TITNError, match=r"can't get the weights of resnet18.a1_in1k \(no route to host\): connect"):
        load_model("timm:resnet18.a1_in1k")


def test_a_teacher_of_timm_in_the_ready_loop(pretrained, tmp_path, monkeypatch):
    """Its pretrained weights are trained further on the data, with new heads; then the student is distilled."""
    quick = teacher_run("cifar10", "timm:resnet10t.c3_in1k", "smoke", 0, None)
    assert quick.init_from == quick.model == "timm:resnet10t.c3_in1k"
    assert quick.recipe.lr == pytest.approx(0.002)
    run = make_run("digits", loss="soft", teacher="timm:resnet10t.c3_in1k", **SMALL)
    assert run.teacher.model == "timm:resnet10t.c3_in1k"
    with pytest.raises(TITNError, match="3 channels, and these have 1"):
        train_comparison(run, tmp_path, device="cpu", progress=False)


@pytest.mark.parametrize("loss", ["feature", "soft+manifold"])
def test_feature_losses_say_that_maps_are_missing(loss, tmp_path):
    says = "needs a teacher with feature maps: use one of airbench, .*, or the loss 'hard' or"
    with pytest.raises(TITNError, match=says):
        make_run("cifar10", loss=loss, teacher="timm:resnet18.a1_in1k")
    with pytest.raises(TITNError, match=says):
        train(make_run("digits", loss=loss, **SMALL), tmp_path, teacher=Own(), device="cpu", progress=False)


# --- a network of one's own


def test_logits_in_an_object_are_understood():
    teacher, images = freeze(Own()), torch.randn(2, 1, 16, 16)
    output = teacher_forward(teacher, images)
    assert torch.equal(output.logits, teacher(images).logits)
    labels = torch.tensor([0, 1])
    objective = Objective(load_model("titn_nano.digits"), "soft", teacher)
    assert objective(images, MixedTargets(labels, labels), output)[0].isfinite()


@pytest.mark.parametrize("what", ["text", ["text"], {"loss": 1}, torch.zeros(2, 3, 4)])
def test_an_output_without_logits(what):
    class Odd(nn.Module):
        def forward(self, images):
            return what

    with pytest.raises(TITNError, match="and not logits, batch × classes"):
        teacher_forward(freeze(Odd()), torch.zeros(2, 3, 4, 4))


def test_images_are_normalized_for_the_teacher():
    """For an own network and for one of ours: the same logits as for images that are normalized its way."""
    data, fabric = load_dataset("digits"), start_fabric("32-true", "cpu")
    images = data.train.images[:8]
    own, vgg = Own(), load_model("vgg7_bn.digits")
    for teacher, wrapped in ((own, ExternalTeacher(own, (0.9,), (0.1,))), (vgg, vgg)):
        if teacher is vgg:
            vgg.preprocessing = type(vgg.preprocessing)("digits", data.classes, (0.9,), (0.1,))
        ready = prepare_teacher(wrapped, data, fabric)
        found = teacher_forward(ready, normalize(images, data.mean, data.std)).logits
        wanted = teacher_forward(teacher.eval(), normalize(images, (0.9,), (0.1,))).logits
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert own.linear.weight.requires_grad


def test_timms_own_normalization_is_found():
    network = timm.create_model("resnet10t", num_classes=10)
    assert ExternalTeacher(network).mean == (0.485, 0.456, 0.406)
    assert ExternalTeacher(network, (0.1,) * 3, (0.2,) * 3).mean == (0.1,) * 3
    with pytest.raises(TITNError, match="give both or neither"):
        ExternalTeacher(network, mean=(0.1,) * 3)


def test_an_own_teacher_in_the_ready_loop(tmp_path):
    """The record names it, the same one finds its finished run, and another one doesn't."""
    teacher, run = Own(), make_run("digits", loss="hard", **SMALL)
    records = train_comparison(run, tmp_path, teacher=teacher, device="cpu", progress=False)
    assert list(records) == ["alone", "distilled"]
    named = json.loads((tmp_path / "distilled" / "record.json").read_text(encoding="utf-8"))["run"]["teacher"]
    assert named == describe_teacher(teacher)
    assert named.startswith("a network of your own: Own ")
    again = train(run, tmp_path / "distilled", teacher=teacher, device="cpu", progress=False)
    assert again.finished == records["distilled"].finished
    with pytest.raises(TITNError, match=r"holds another run \(teacher differ\)"):
        train(run, tmp_path / "distilled", teacher=Own(), device="cpu", progress=False)
    with pytest.raises(TITNError, match="pass it again"):
        train(again.run, tmp_path / "new", device="cpu", progress=False)


def test_own_teachers_that_do_not_fit(tmp_path):
    run = make_run("digits", loss="hard", **SMALL)
    for teacher, says in (
        (Own(classes=7), r"shape \(2, 7\), and digits has 10 classes"),
        (nn.Linear(3, 10), "can't take images of 1×16×16"),
        (ExternalTeacher(Own(), (0.5,) * 3, (0.5,) * 3), "3 channels, and the images of digits have 1"),
        (load_model("titn_nano.digits"), "is a student, not a teacher"),
    ):
        with pytest.raises(TITNError, match=says):
            train(run, tmp_path, teacher=teacher, device="cpu", progress=False)
    with pytest.raises(TITNError, match="needs no teacher"):
        train(make_run("digits", loss="cross_entropy", **SMALL), tmp_path, teacher=Own(), device="cpu", progress=False)
