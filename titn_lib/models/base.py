"""The base classes of all networks: images of one size → logits."""

from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from titn_lib.data.transforms import Images, Preprocessing
from titn_lib.errors import TITNError
from titn_lib.models.layers import Heads, TokenLogits
from titn_lib.validation import check_settings, require_tensor


class Config(Protocol):
    """The settings that all networks have: their name, and the images and classes they are made for."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def image_size(self) -> tuple[int, int]: ...


class Classifier(nn.Module):
    """The base of students and teachers.

    Attributes:
        config: its settings, from which its class builds it.
        preprocessing: that of the images it was trained on; set when it is loaded from a file that has it.
        adaptive: whether it computes less for some images than for others (`saved_macs`).
    """

    config: Config
    preprocessing: Preprocessing | None = None
    adaptive: bool = False

    def saved_macs(self) -> Int64[Tensor, " batch"]:
        """MACs that an adaptive network saved for each image in its last forward pass."""
        raise NotImplementedError

    def check_images(self, images: Tensor) -> None:
        """Raises TITNError unless the images are a floating-point batch of the size that the network takes."""
        require_tensor(images)
        wanted = (self.config.in_channels, *self.config.image_size)
        if images.ndim == 3 and tuple(images.shape) == wanted:
            raise TITNError("models expect a batch of images, not a single one: pass images[None]")
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise TITNError(
                f"{self.config.name} expects batches of {'×'.join(map(str, wanted))} images (channels × height × width)"
                f", not {'×'.join(map(str, images.shape))}: resize the images, or make a model for them with "
                "image_size=… and in_channels=… (load_model(path, image_size=…) adapts trained weights to another size)"
            )
        if not images.is_floating_point():
            raise TITNError(
                "models expect normalized images, not integers: call titn_lib.data.normalize first, or use "
                "titn_lib.predict"
            )
        self.check_place(images)

    def check_place(self, images: Tensor) -> None:
        """Raises TITNError unless the images have the weights' dtype and device. Autocast changes the dtype itself."""
        weight = next((weight for weight in self.parameters() if weight.is_floating_point()), None)
        if weight is None or weight.is_meta:
            return
        if weight.device != images.device:
            raise TITNError(
                f"the images are on {images.device} and the model is on {weight.device}: move one of them with .to(…)"
            )
        if weight.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
            raise TITNError(
                f"the images are {images.dtype} and the model's weights are {weight.dtype}: convert the images with "
                f"images.to({weight.dtype}), or the model with model.to({images.dtype})"
            )


class AttentionMaps(NamedTuple):
    """The attention of every block; each row is a query and sums to 1.

    `inner` is empty for a model without inner layers.
    """

    inner: list[Float[Tensor, "batch patch head query key"]]
    outer: list[Float[Tensor, "batch head query key"]]


class Encoding(NamedTuple):
    """Output of `forward_features`.

    Attributes:
        hidden_states: the outer tokens (class, patches, distillation) after every block; the last are the heads' input.
        attention: the attention of every block; empty lists unless it was requested.
    """

    hidden_states: list[Float[Tensor, "batch token width"]]
    attention: AttentionMaps


class TokenConfig(Config, Protocol):
    """The further settings of token-based students, and the number of tokens they imply."""

    @property
    def patch_size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def distillation_token(self) -> bool: ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Outer tokens: class, patches and, where there is one, distillation."""
        return 1 + self.num_patches + self.distillation_token


class TokenClassifier(Classifier):
    """The base of TITN and ViT: images → outer tokens (`forward_features`) → logits (`heads`)."""

    POS_EMBED_KEYS: tuple[str, ...] = ()  # tables with one row per patch, between the class and distillation rows
    config: TokenConfig
    heads: Heads
    token_width: int  # of the outer stream

    def init_weights(self, tables: list[nn.Parameter], init: Literal["normal", "trunc_normal"]) -> None:
        """Initialize the weights from torch's global generator; `titn.TITNConfig.init` explains the two ways."""
        for table in tables:
            nn.init.normal_(table) if init == "normal" else nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if init == "trunc_normal" and isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images: Images, return_attention: bool = False) -> Encoding:
        """The outer tokens after every block and, if requested, the attention."""
        raise NotImplementedError

    def forward(
        self, images: Images, return_attention: bool = False
    ) -> Tensor | TokenLogits | tuple[Tensor | TokenLogits, AttentionMaps]:
        """Logits of normalized images.

        Returns:
            "batch classes" logits; in training, with a distillation token, both heads' (`TokenLogits`).
            With `return_attention`, a pair: the logits and the `AttentionMaps`.

        Raises:
            TITNError: the images have another size or number of channels than the model takes.
        """
        encoding = self.forward_features(images, return_attention)
        logits = self.heads(encoding.hidden_states[-1])
        return (logits, encoding.attention) if return_attention else logits


def check_student(config: Any) -> None:
    """Raises TITNError for invalid settings of a TITN or ViT, and for images that can't be cut into patches."""
    check_settings(config)
    if config.mlp_ratio <= 0:
        raise TITNError(f"mlp_ratio must be greater than 0, not {config.mlp_ratio}")
    check_patches(config.image_size, config.patch_size)


def check_patches(image_size: tuple[int, int], patch_size: int) -> None:
    """Raises TITNError unless the patch size divides the height and the width of the images."""
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise TITNError(
            f"images of {height}×{width} can't be cut into patches of {patch_size}: choose an image_size that "
            f"{patch_size} divides, or another patch_size"
        )
