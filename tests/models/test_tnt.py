"""The original TNT, a setting of TITN's class: timm's TNT on the same weights, and the published size."""

import pytest
import timm
import torch

from titn_lib import count_macs, count_parameters, create_model
from titn_lib.models.external import from_timm_tnt


def randomize(model):
    """Draw all weights anew. Queries and keys are larger than the rest, or attention would be nearly uniform."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
        else:
            torch.nn.init.normal_(parameter, std=0.08 if ".qk." in name else 0.03)


@pytest.mark.parametrize(
    ("preset", "timm_name", "settings"),
    [
        ("tnt_s", "tnt_s_patch16_224", {}),
        ("tnt_s", "tnt_s_legacy_patch16_224", {"pixel_embedding": "conv_across", "projection_norm": "pixel"}),
        ("tnt_b", "tnt_b_patch16_224", {"image_size": 112}),
    ],
)
def test_tnt_equals_timm(preset, timm_name, settings):
    """The same logits to 1e-5 with the same weights, and as many parameters."""
    theirs = timm.create_model(timm_name, pretrained=False, img_size=settings.get("image_size", 224)).eval()
    randomize(theirs)
    ours = create_model(preset, **settings).eval()
    weights, config = from_timm_tnt(theirs.state_dict())
    assert config == ours.config
    ours.load_state_dict(weights)
    assert count_parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters())
    images = torch.randn(2, 3, *ours.config.image_size)
    with torch.no_grad():
        logits, attention = ours(images, return_attention=True)
        assert (logits - theirs(images)).abs().max() <= 1e-5
    # The comparison says something: logits differ, and each token's largest attention is over twice the uniform one.
    assert logits.std() > 0.3
    assert min(rows.amax(dim=-1).mean() * rows.shape[-1] for rows in attention.outer) > 2


def test_tnt_ti_has_the_published_size():
    """6.1 M parameters and 1.4 G MACs (Han et al. 2021, table 1)."""
    model = create_model("tnt_ti")
    assert count_parameters(model) == pytest.approx(6.1e6, rel=0.01)
    assert count_macs(model) == pytest.approx(1.4e9, rel=0.01)
