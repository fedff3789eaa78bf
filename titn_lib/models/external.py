"""Networks from elsewhere: timm's by name, timm's TNT as ours, and any module that returns logits as a teacher.

    load_model("timm:tnt_s_patch16_224.in1k")    timm's pretrained TNT, as this library's `tnt_s`
    load_model("timm:resnet18.a1_in1k")          any other timm model, in a `TimmClassifier`
    from_timm_vit(network)                       timm's ViT or DeiT as this library's `ViT`, for its attention maps
    ExternalTeacher(network, mean, std)          a network of your own, for `train(..., teacher=…)`

timm is imported where it is needed: `pip install timm`.
"""

import copy
import hashlib
import re
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from titn_lib.data.transforms import Images, Preprocessing
from titn_lib.errors import TITNError
from titn_lib.models.base import Classifier
from titn_lib.models.registry import MODELS, TIMM, build_on_meta, register_model, shapes
from titn_lib.models.titn import TITN, TITNConfig
from titn_lib.models.vit import ViT, ViTConfig
from titn_lib.validation import check_settings

OWN_TEACHER = "a network of your own: "  # how a record begins to name a teacher that was passed as a module


@dataclass(frozen=True)
class TimmConfig:
    """The settings of a timm model; its name is timm's, after "timm:"."""

    name: str = "timm:resnet18"
    num_classes: int = 10
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)

    def __post_init__(self) -> None:
        check_settings(self)


class TimmClassifier(Classifier):
    """A timm model with random weights, which `load_model` and `load_initial_weights` replace."""

    config: TimmConfig

    def __init__(self, config: TimmConfig):
        super().__init__()
        self.config = config
        settings: dict[str, Any] = {"num_classes": config.num_classes, "in_chans": config.in_channels}
        if timm_settings(config.name).get("fixed_input_size"):
            settings["img_size"] = config.image_size
        self.network = create_timm(config.name, **settings)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images."""
        self.check_images(images)
        return logits_of(self.network(images))


def import_timm() -> ModuleType:
    """timm.

    Raises:
        TITNError: it isn't installed.
    """
    try:
        import timm
    except ImportError as problem:
        raise TITNError("networks from timm need one more package: pip install timm") from problem
    return timm


def timm_settings(name: str) -> dict[str, Any]:
    """What timm knows of a network's images and classes. `name` begins with "timm:".

    Raises:
        TITNError: timm has no such network.
    """
    timm = import_timm()
    name = name.removeprefix(TIMM)
    known = timm.list_models(), timm.list_pretrained()
    if name not in known[0] and name not in known[1]:
        raise TITNError(
            f"timm {timm.__version__} has no network {name!r}: choose one of timm.list_pretrained(), such as "
            "timm:resnet18.a1_in1k"
        )
    found = timm.get_pretrained_cfg(name)
    return found.to_dict() if found else {}


def create_timm(name: str, **settings: Any) -> nn.Module:
    """The timm model of this name, which begins with "timm:".

    Raises:
        TITNError: timm can't make it with these settings, or can't download its weights.
    """
    timm = import_timm()
    try:
        network: nn.Module = timm.create_model(name.removeprefix(TIMM), **settings)
        return network
    except Exception as problem:  # those of timm, of its many networks and of the download
        reason = str(problem).strip().split("\n")[0]
        what = "get the weights of" if settings.get("pretrained") else "make"
        raise TITNError(
            f"timm can't {what} {name.removeprefix(TIMM)} ({reason}): "
            + ("connect to the internet, or use another network" if "get" in what else "choose another image_size")
        ) from problem


def read_timm(name: str) -> tuple[dict[str, Tensor], Any, Preprocessing]:
    """Weights, settings and preprocessing of a pretrained timm model: as a TITN for a TNT, else as it is.

    Args:
        name: "timm:" and timm's name, such as "timm:tnt_s_patch16_224.in1k".

    Raises:
        TITNError: timm isn't installed, has no such network, or can't download its weights.
    """
    known = timm_settings(name)
    weights = create_timm(name, pretrained=True).state_dict()
    preprocessing = timm_preprocessing(name, known["num_classes"], known)
    if is_timm_tnt(weights):
        return *from_timm_tnt(weights), preprocessing
    channels, height, width = known["input_size"]
    config = TimmConfig(name, known["num_classes"], channels, (height, width))
    return {f"network.{key}": value for key, value in weights.items()}, config, preprocessing


def timm_preprocessing(name: str, num_classes: int, known: dict[str, Any]) -> Preprocessing:
    """Classes and normalization of a timm model; `known` has its "mean" and "std"."""
    data = "imagenet-1k" if num_classes == 1000 else name.removeprefix(TIMM)
    return Preprocessing(data, class_names(num_classes), tuple(known["mean"]), tuple(known["std"]))


def class_names(num_classes: int) -> tuple[str, ...]:
    """ImageNet's for a thousand classes, if timm is there to name them; else "0", "1" …"""
    if num_classes == 1000:
        try:
            from timm.data import ImageNetInfo
        except ImportError:
            pass
        else:
            info = ImageNetInfo()
            return tuple(info.index_to_description(i) for i in range(num_classes))
    return tuple(map(str, range(num_classes)))


# --- timm's TNT as ours

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


def is_timm_tnt(weights: dict[str, Tensor]) -> bool:
    """Whether these are the weights of timm's TNT."""
    return {"pixel_pos", "patch_pos", "blocks.0.attn_in.qk.weight", "head.weight"} <= weights.keys()


def our_name(name: str, outside: dict[str, str], inside: dict[str, str]) -> str:
    """Our name of a weight of timm's; the same name for one that has no counterpart."""
    block, rest = re.fullmatch(r"(blocks\.\d+\.)?(.*)", name).groups(default="")  # type: ignore[union-attr]
    for theirs, ours in (inside if block else outside).items():
        if rest.startswith(theirs):
            return f"{block}{ours}{rest.removeprefix(theirs)}"
    return name


def reshape_all(weights: dict[str, Tensor], wanted: dict[str, torch.Size]) -> dict[str, Tensor] | None:
    """The weights in these shapes; None if their names or numbers of values are others."""
    if {name: value.numel() for name, value in weights.items()} != {name: one.numel() for name, one in wanted.items()}:
        return None
    return {name: value.reshape(wanted[name]) for name, value in weights.items()}


def from_timm_tnt(theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], TITNConfig]:
    """Weights of timm's TNT under our names and in our shapes, and the settings of the `tnt_s` or `tnt_b` they are of.

    Raises:
        TITNError: they are of a TNT of another size.
    """
    weights = dict(theirs)
    for name in theirs:
        if ".qk." in name:  # queries and keys in one matrix, values in another; here all three in one
            values = weights.pop(name.replace(".qk.", ".v."))
            weights[name.replace(".qk.", ".qkv.")] = torch.cat([weights.pop(name), values])
    weights["pixel_pos"] = weights["pixel_pos"].flatten(2).mT  # "1 width row column" → "1 pixel width"
    preset = {384: "tnt_s", 640: "tnt_b"}.get(theirs["cls_token"].shape[-1], "")
    side = 16 * round((theirs["patch_pos"].shape[1] - 1) ** 0.5)
    if preset:
        config: TITNConfig = replace(
            MODELS[preset], num_classes=len(theirs["head.weight"]), image_size=(side, side),
            in_channels=theirs["pixel_embed.proj.weight"].shape[1],
        )  # fmt: skip
        if len(theirs["blocks.0.norm1_proj.weight"]) == config.inner_width:  # timm's legacy TNT
            config = replace(config, pixel_embedding="conv_across", projection_norm="pixel")
        found = {our_name(name, OUTSIDE, INSIDE): value for name, value in weights.items()}
        ours = reshape_all(found, shapes(build_on_meta(TITN, config).state_dict()))
        if ours is not None:
            return ours, config
    raise TITNError("of timm's TNTs, only the weights of tnt_s and tnt_b can be loaded")


# --- timm's ViT and DeiT as ours

VIT_OUTSIDE = {
    "patch_embed.proj.": "embed.",
    "norm.": "heads.class_head.0.",
    "head.": "heads.class_head.1.",
    "head_dist.": "heads.distillation_head.1.",
}
VIT_INSIDE = {
    "norm1.": "attention_norm.",
    "norm2.": "mlp_norm.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.2.",
}


def from_timm_vit(network: nn.Module) -> ViT | None:
    """timm's ViT or DeiT as a `ViT` in the same mode, which shares its weights.

    Args:
        network: of timm, or a `TimmClassifier`.

    Returns:
        None for any other network, and for a ViT with other parts (LayerScale, register tokens, pooled patches …).
    """
    name = getattr(getattr(network, "config", None), "name", None)
    preprocessing = getattr(network, "preprocessing", None)
    vit: Any = network.network if isinstance(network, TimmClassifier) else network
    theirs = vit.state_dict()
    if not {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= theirs.keys():
        return None
    if vit.global_pool != "token" or not isinstance(vit.blocks[0].mlp.act, nn.GELU):
        return None
    known: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
    rows, columns = vit.patch_embed.grid_size
    width, side = theirs["cls_token"].shape[-1], theirs["patch_embed.proj.weight"].shape[-1]
    config = ViTConfig(
        name or TIMM + known.get("architecture", "vit"), len(theirs["head.weight"]),
        theirs["patch_embed.proj.weight"].shape[1], (rows * side, columns * side), side, width,
        vit.blocks[0].attn.num_heads, len(vit.blocks), len(theirs["blocks.0.mlp.fc1.bias"]) / width,
        distillation_token="dist_token" in theirs, norm_eps=vit.norm.eps,
    )  # fmt: skip
    if config.distillation_token:  # timm's second token, our last
        first, distillation, patches = theirs["pos_embed"].split([1, 1, config.num_patches], dim=1)
        theirs["pos_embed"] = torch.cat([first, patches, distillation], dim=1)
    found = {our_name(key, VIT_OUTSIDE, VIT_INSIDE): value for key, value in theirs.items()}
    if config.distillation_token:  # both heads have the one norm
        found |= {f"heads.distillation_head.0.{key}": theirs[f"norm.{key}"] for key in ("weight", "bias")}
    model = cast(ViT, build_on_meta(ViT, config).train(vit.training))
    ours = reshape_all(found, shapes(model.state_dict()))
    if ours is None:
        return None
    model.load_state_dict(ours, assign=True)
    if preprocessing is None and known.get("mean"):
        preprocessing = timm_preprocessing(config.name, config.num_classes, known)
    model.preprocessing = preprocessing
    return model


# --- teachers of one's own


class ExternalTeacher(nn.Module):
    """Any network that returns logits, as the teacher of a loss on logits ("hard", "soft", "dkd").

    Args:
        network: images → logits, one for each class of the data set, in the order of its `classes`; or an object with
            the logits in its `logits`, as Hugging Face's networks return.
        mean, std: how its images were normalized, one value per channel, for channels scaled to 0–1. By default those
            that it has itself (`preprocessing`, or timm's `pretrained_cfg`), else those of the data set.

    Raises:
        TITNError: only one of mean and std is given.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None):
        super().__init__()
        if (mean is None) != (std is None):
            raise TITNError("a normalization is a mean and a std: give both or neither")
        own = getattr(network, "preprocessing", None) or getattr(network, "pretrained_cfg", None) or {}
        known = own if isinstance(own, dict) else vars(own)
        self.network = network
        self.mean = mean or known.get("mean")
        self.std = std or known.get("std")

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return logits_of(self.network(images))


class Renormalize(nn.Module):
    """Images normalized in one way → the same images normalized in another."""

    factor: Tensor
    offset: Tensor

    def __init__(
        self,
        old: tuple[tuple[float, ...], tuple[float, ...]],
        new: tuple[tuple[float, ...], tuple[float, ...]],
    ):
        super().__init__()
        (mean, std), (new_mean, new_std) = ((torch.tensor(v).view(1, -1, 1, 1) for v in pair) for pair in (old, new))
        self.register_buffer("factor", std / new_std, persistent=False)
        self.register_buffer("offset", (mean - new_mean) / new_std, persistent=False)

    def forward(self, images: Images) -> Images:
        return torch.addcmul(self.offset, images, self.factor)


def logits_of(output: Any) -> Float[Tensor, "batch classes"]:
    """The logits in a network's output: the output itself, or its `logits`.

    Raises:
        TITNError: there are none.
    """
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    what = f"a tensor of {found.ndim} dimensions" if isinstance(found, Tensor) else f"a {type(output).__name__}"
    raise TITNError(
        f"the teacher returns {what} and not logits, batch × classes: wrap it in a module that returns its logits"
    )


def describe_teacher(network: nn.Module) -> str:
    """How a record names a network that was passed as a module: its class, and a hash of its weights."""
    inner = network.network if isinstance(network, ExternalTeacher) else network
    digest = hashlib.sha256(repr([getattr(network, name, None) for name in ("mean", "std")]).encode())
    for name, value in inner.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{OWN_TEACHER}{type(inner).__name__} {digest.hexdigest()[:12]}"


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode without gradients.

    Raises:
        TITNError: the network can't be copied.
    """
    try:
        return copy.deepcopy(network).eval().requires_grad_(False)
    except Exception as problem:
        raise TITNError(
            f"a {type(network).__name__} can't be copied ({problem}): pass a network that was just made or loaded"
        ) from problem


register_model("timm", TimmClassifier, TimmConfig, {})
