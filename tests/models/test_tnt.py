"""TNT, a setting of the same class, against timm's TNT and its published size."""

import pytest
import timm
import torch

from titn_lib import count_macs, count_parameters, create_model


def from_timm(theirs, grid_pixels):
    """timm's TNT weights under our names."""
    special = {"pixel_embed.proj.": "pixel_embedding.embed.", "norm1_proj.": "patch_embedding.projection.norm.",
               "proj.": "patch_embedding.projection.linear.", "norm2_proj.": "patch_embedding.projection.last_norm.",
               "norm.": "heads.class_head.0.", "head.": "heads.class_head.1."}  # fmt: skip
    legacy = any(name.endswith("0.proj.bias") for name in theirs)
    place = {"norm_in.": "inner.attention_norm.", "attn_in.": "inner.attn.", "norm_mlp_in.": "inner.mlp_norm.",
             "mlp_in.fc1.": "inner.mlp.0.", "mlp_in.fc2.": "inner.mlp.2.",
             "norm1_proj.": "projection.norm.", "proj.": "projection.linear.",
             "norm2_proj.": "projection.last_norm.",
             "norm_out.": "outer.attention_norm.", "attn_out.": "outer.attn.",
             "norm_mlp.": "outer.mlp_norm.", "mlp.fc1.": "outer.mlp.0.", "mlp.fc2.": "outer.mlp.2."}  # fmt: skip
    ours = {}
    for name, value in theirs.items():
        if name == "cls_token":
            ours["patch_embedding.cls_token"] = value[0]
        elif name == "patch_pos":
            ours["patch_embedding.pos_embed"] = value[0]
        elif name == "pixel_pos":
            ours["pixel_embedding.pos_embed"] = value[0].flatten(1).T
        elif name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            old = next(prefix for prefix in place if rest.startswith(prefix))
            new = f"blocks.{index}.{place[old]}{rest.removeprefix(old)}"
            if ".attn.v." not in new:
                ours[new.replace(".qk.", ".qkv.")] = (
                    torch.cat([value, theirs[name.replace(".qk.", ".v.")]]) if ".qk." in new else value
                )
        else:
            old = next(prefix for prefix in special if name.startswith(prefix))
            ours[special[old] + name.removeprefix(old)] = value
    shapes = {"patch": ours["pixel_embedding.pos_embed"].shape, "pixel": (-1,)}  # their LayerNorm of a patch is flat
    return {
        name: value.reshape(shapes["pixel" if legacy and name.startswith("blocks") else "patch"])
        if ".norm." in name and "projection" in name
        else value
        for name, value in ours.items()
    }


@pytest.mark.parametrize(
    ("preset", "their_name", "settings"),
    [
        ("tnt_s", "tnt_s_patch16_224", {}),
        ("tnt_s", "tnt_s_legacy_patch16_224", {"pixel_embedding": "conv_across", "projection_norm": "pixel"}),
        ("tnt_b", "tnt_b_patch16_224", {}),
    ],
)
def test_tnt_equals_timm(preset, their_name, settings):
    theirs = timm.create_model(their_name, pretrained=False).eval()
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
        else:  # queries and keys large enough for attention that isn't uniform
            torch.nn.init.normal_(parameter, std=0.08 if ".qk." in name else 0.03)
    ours = create_model(preset, **settings).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), 16))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        logits, attention = ours(images, return_attention=True)
        assert (logits - theirs(images)).abs().max() <= 1e-5
    assert logits.std() > 0.3
    assert min(rows.max(-1).values.mean() * rows.shape[-1] for rows in attention.outer) > 2  # far from uniform
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())


def test_the_tiny_tnt_has_its_published_size():
    """6.1 M parameters and 1.4 G MACs (Han et al. 2021, table 1)."""
    model = create_model("tnt_ti")
    assert count_parameters(model) == pytest.approx(6.1e6, rel=0.01)
    assert count_macs(model) == pytest.approx(1.4e9, rel=0.01)
