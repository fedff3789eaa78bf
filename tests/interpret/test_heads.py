"""The overview of heads: against uniform attention, whose numbers are known, and against weights that are set to 0."""

import copy

import pytest
import torch
from torch import nn

from titn_lib import TITNError, create_model
from titn_lib.data.datasets import DataSplits, ImageDataset
from titn_lib.data.transforms import Preprocessing, normalize
from titn_lib.interpret import heads
from titn_lib.interpret.explorer import overview, unpack
from titn_lib.interpret.heads import attention_modules, summarize_heads


def make(name="titn_paper", **settings):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, **{"depth": 2, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(40, 3, 32, 32)


@pytest.mark.parametrize("name", ["titn_paper", "vit_paper"])
def test_uniform_attention(name, images):
    model = make(name)
    for modules in attention_modules(model).values():
        for module in modules:
            module.qkv.weight.zero_()
            module.qkv.bias.zero_()
    found = summarize_heads(model, images[:5], torch.zeros(5, dtype=torch.long), batch_size=2)
    assert set(found) == ({"outer", "inner"} if name == "titn_paper" else {"outer"})
    for stream, summary in found.items():
        tokens = {"inner": 16, "outer": 16 + 1 + model.config.distillation_token}[stream]
        places = torch.tensor([(row, column) for row in range(4) for column in range(4)], dtype=torch.float32)
        distance = (places[:, None] - places[None]).square().sum(dim=-1).sqrt().mean()
        torch.testing.assert_close(summary.distance, distance.expand_as(summary.distance))
        torch.testing.assert_close(summary.tokens, torch.full_like(summary.tokens, tokens))
        torch.testing.assert_close(summary.maps, torch.full_like(summary.maps, 1 / tokens))
        assert not summary.effect.any()  # equal values: nothing is lost
        assert not summary.error.any()


def test_maps_and_distances_of_single_images(images):
    """The mean over images is that of every image alone; the distance follows the attention that the model returns."""
    model = make()
    whole = summarize_heads(model, images[:3], torch.zeros(3, dtype=torch.long), batch_size=2)["outer"]
    singles = [summarize_heads(model, image[None], torch.zeros(1, dtype=torch.long))["outer"] for image in images[:3]]
    for part in ("distance", "tokens", "maps"):
        alone = torch.stack([getattr(one, part) for one in singles])
        torch.testing.assert_close(getattr(whole, part), alone.mean(dim=0))
    attention = model(images[:1], return_attention=True)[1].outer[1][0, 3]
    torch.testing.assert_close(singles[0].maps[1, 3], attention[0, 1:17])
    inner = model(images[:1], return_attention=True)[1].inner[1][0, :, 2]  # patch query key
    summary = summarize_heads(model, images[:1], torch.zeros(1, dtype=torch.long))["inner"]
    torch.testing.assert_close(summary.maps[1, 2], inner.mean(dim=(0, 1)))
    far = 0.0
    for q, row in enumerate(attention[1:17, 1:17]):
        distances = [((q // 4 - k // 4) ** 2 + (q % 4 - k % 4) ** 2) ** 0.5 for k in range(16)]
        far += float((row * torch.tensor(distances)).sum() / row.sum()) / 16
    assert float(singles[0].distance[1, 3]) == pytest.approx(far, abs=1e-5)


@pytest.mark.parametrize("stream", ["outer", "inner"])
def test_effect_of_a_head(images, stream):
    """As if the weights that read its output were 0."""
    model = make()
    labels = model(images).argmax(dim=-1)
    labels[::4] = (labels[::4] + 1) % 4  # three of four are classified correctly
    summary = summarize_heads(model, images, labels)[stream]
    for block, head in ((0, 1), (1, 2)):
        without = copy.deepcopy(model)
        proj = attention_modules(without)[stream][block].proj
        width = proj.in_features // (8 if stream == "outer" else 4)
        proj.weight[:, head * width : (head + 1) * width] = 0
        lost = (model(images).argmax(dim=-1) == labels).float() - (without(images).argmax(dim=-1) == labels).float()
        assert float(summary.effect[block, head]) == pytest.approx(100 * float(lost.mean()), abs=1e-4)
        assert float(summary.error[block, head]) == pytest.approx(
            100 * float(lost.std(correction=0)) / 40**0.5, abs=1e-4
        )
    assert summary.effect.abs().max() > 1  # so that there is something to compare
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit(images):
    labels = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TITNError, match="there are 2 images and 3 labels"):
        summarize_heads(make(), images[:2], labels)
    with pytest.raises(TITNError, match="there are 0 images"):
        summarize_heads(make(), images[:0], labels[:0])
    with pytest.raises(TITNError, match="has no attention maps"):
        summarize_heads(create_model("vgg7_bn", num_classes=4).eval(), images[:3], labels)


def test_the_overview_of_a_data_set(images, monkeypatch):
    """On validation images, at most so many, normalized as the model takes them."""
    model = make()
    model.preprocessing = Preprocessing("photos", ("cat", "dog", "ship", "frog"), (0.4,) * 3, (0.3,) * 3)
    pixels, labels = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8), torch.arange(9) % 4
    names = ("validation", "train", "test")
    parts = {name: ImageDataset(pixels.roll(shift, 0), labels) for shift, name in enumerate(names)}
    splits = DataSplits("photos", ("cat", "dog", "ship", "frog"), (0.0,) * 3, (1.0,) * 3, **parts)
    monkeypatch.setattr(overview, "load_dataset", lambda *arguments: splits)
    monkeypatch.setattr(overview, "MAX_IMAGES", 8)
    predict, passes = heads.classified_correctly, []
    monkeypatch.setattr(heads, "classified_correctly", lambda *given: passes.append(len(given[1])) or predict(*given))
    found = overview.overview_data([model], "here/photos")
    assert (found["data"], found["images"]) == ("photos", 8)
    assert passes == [8] * (1 + sum(len(one["effect"]) * len(one["effect"][0]) for one in found["models"][0].values()))
    predicted = model(normalize(pixels[:8], (0.4,) * 3, (0.3,) * 3)).argmax(dim=-1)
    assert found["accuracy"] == [100 * float((predicted == labels[:8]).float().mean())]
    wanted = summarize_heads(model, normalize(pixels[:8], (0.4,) * 3, (0.3,) * 3), labels[:8])["inner"]
    inner = found["models"][0]["inner"]
    assert inner["effect"] == wanted.effect.tolist()
    torch.testing.assert_close(unpack(inner["maps"]), wanted.maps, atol=1e-3, rtol=0)
    model.preprocessing = Preprocessing("photos", ("a", "b", "c", "d"), (0.4,) * 3, (0.3,) * 3)
    with pytest.raises(TITNError, match="has other classes than titn_paper"):
        overview.overview_data([model], "here/photos")
