"""The original TNT, a setting of TITN's class: timm's TNT on the same weights, and the published size."""

import re

import pytest
import timm
import torch

from titn_lib import count_macs, count_parameters, create_model

# How names begin in timm and here: outside the blocks, and inside each block after "blocks.N.".
OUTSIDE = {
    "cls_token": "patch_embedding.cls_token",
    "patch_pos": "patch_embedding.pos_embed",
    "pixel_pos": "pixel_embedding.pos_embed",
    "pixel_embed.proj.": "pixel_embedding.embed.",
    "norm1_proj.": "patch_embedding.projection.norm.",
    "proj.": "patch_embedding.projection.linear.",
    "norm2_proj.": "patch_embedding.projection.last_norm.",
    "norm.": "heads.class_head.0.",
    "head.": "heads.class_head.1.",
}
INSIDE = {
    "norm_in.": "inner.attention_norm.",
    "attn_in.": "inner.attn.",
    "norm_mlp_in.": "inner.mlp_norm.",
    "mlp_in.fc1.": "inner.mlp.0.",
    "mlp_in.fc2.": "inner.mlp.2.",
    "norm1_proj.": "projection.norm.",
    "proj.": "projection.linear.",
    "norm2_proj.": "projection.last_norm.",
    "norm_out.": "outer.attention_norm.",
    "attn_out.": "outer.attn.",
    "norm_mlp.": "outer.mlp_norm.",
    "mlp.fc1.": "outer.mlp.0.",
    "mlp.fc2.": "outer.mlp.2.",
}


def our_name(name):
    block, rest = re.fullmatch(r"(blocks\.\d+\.)?(.*)", name).groups(default="")
    for theirs, ours in (INSIDE if block else OUTSIDE).items():
        if rest.startswith(theirs):
            return block + ours + rest.removeprefix(theirs)
    raise AssertionError(f"a weight without a counterpart: {name}")


def from_timm(theirs, ours):
    """The weights of timm's TNT (`theirs`, a state_dict) under our names and in the shapes of `ours`, another one."""
    weights = dict(theirs)
    for name in theirs:
        if ".qk." in name:  # queries and keys in one matrix, values in another; here all three in one
            values = weights.pop(name.replace(".qk.", ".v."))
            weights[name.replace(".qk.", ".qkv.")] = torch.cat([weights.pop(name), values])
    weights["pixel_pos"] = weights["pixel_pos"].flatten(2).mT  # "1 width row column" → "1 pixel width"
    return {our_name(name): value.reshape(ours[our_name(name)].shape) for name, value in weights.items()}


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
        ("tnt_b", "tnt_b_patch16_224", {}),
    ],
)
def test_tnt_equals_timm(preset, timm_name, settings):
    """The same logits to 1e-5 with the same weights, and as many parameters."""
    theirs = timm.create_model(timm_name, pretrained=False).eval()
    randomize(theirs)
    ours = create_model(preset, **settings).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours.state_dict()))
    assert count_parameters(ours) == sum(parameter.numel() for parameter in theirs.parameters())
    images = torch.randn(2, 3, 224, 224)
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
