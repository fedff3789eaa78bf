"""The TITN and TNT models that `create_model` knows by name."""

from dataclasses import replace

from titn_lib.models.registry import register_model
from titn_lib.models.titn import TITN, TITNConfig

# The published model. Its authors' call for 224×224 doubles the widths and keeps the head widths of the small model.
PAPER = TITNConfig()
PAPER_224 = replace(
    PAPER, image_size=(224, 224), patch_size=16, pixel_size=4,
    inner_width=24, inner_head_width=3, outer_width=384, outer_head_width=24,
)  # fmt: skip

# The original TNT, for 224×224 images (Han et al. 2021, table 1).
TNT_S = TITNConfig(
    num_classes=1000, image_size=(224, 224), patch_size=16, pixel_size=4,
    inner_width=24, inner_heads=4, outer_width=384, outer_heads=6, qkv_bias=False,
    pixel_embedding="conv", patch_tokens="from_pixels", projection_norm="patch", pooling="class",
    distillation_token=False, init="trunc_normal",
)  # fmt: skip

# Ours, for a laptop: smaller patches, fewer and narrower layers, overlapping pixel tokens, patch tokens from the image.
# Chosen for speed on two cores; not tuned for accuracy.
NANO = replace(
    PAPER, patch_size=4, inner_width=16, inner_heads=2, outer_width=128, outer_heads=4, depth=5, mlp_ratio=2,
    pixel_embedding="conv_across", patch_tokens="from_pixels", init="trunc_normal",
)  # fmt: skip
# Ours, for photographs: chosen in experiments/39-cifar10-steps_from_nano-laptop.toml.
MINI = replace(NANO, inner_width=24, depth=4, pixel_embedding="stem")
# The same with depthwise convolutions, before attention and inside the outer MLPs: more accurate, but attention maps
# don't show the paths through them.
MINI_CONV = replace(MINI, local_perception=True, mlp_convolution=True)
# Ours, for grayscale digits and clothes: the paper's larger patches halve the time.
PICO = replace(NANO, depth=3, patch_size=8, pixel_embedding="stem")
# Ours, for a GPU; not trained yet. What helped MINI in short runs (results/README.md), with 256 patches instead of 64.
PLUS = replace(
    MINI_CONV, patch_size=2, pixel_size=1, inner_heads=4, outer_width=192, outer_heads=6, depth=9, drop_path=0.1,
)  # fmt: skip

PRESETS = {
    "titn_paper": PAPER,
    "titn_paper_224": PAPER_224,
    "tnt_paper": replace(PAPER, distillation_token=False, pooling="class"),  # the paper's student without distillation
    "tnt_ti": replace(TNT_S, inner_width=12, inner_heads=2, outer_width=192, outer_heads=3),
    "tnt_s": TNT_S,
    "tnt_b": replace(TNT_S, inner_width=40, outer_width=640, outer_heads=10),
    "titn_nano": NANO,
    "titn_mini": MINI,
    "titn_mini_conv": MINI_CONV,
    "titn_plus": PLUS,
    "titn_pico": PICO,
}
PRESETS = {name: replace(config, name=name) for name, config in PRESETS.items()}
register_model("titn", TITN, TITNConfig, PRESETS)
