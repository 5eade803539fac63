"""Compute patch features `(images, patches, hidden_size)` with any Hugging Face or timm vision
encoder.

The feature is the output of one block before the encoder's final norm, then a LayerNorm of our own
without trained values; class, prefix and register tokens are dropped (bytedance/ParGo, for the
paper's EVA-02-CLIP-L/14 at 336 px). Blocks, norms and heads behind that block are not built, so
that no parameter is left unused.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from .configuration_pargo import ParGoVisionConfig

CLASSIFIERS = ("head.", "fc.", "classifier.")  # timm's names; never built here
FINAL_NORMS = ("post_layernorm", "layernorm", "norm", "ln_post", "final_layer_norm")


class VisionTower(nn.Module):
    """Encoder named by the configuration; `backbone` may be a prebuilt (pretrained) encoder of that
    kind.

    It runs without a graph and in eval mode while none of its parameters wants a gradient (a frozen
    batch norm must not learn statistics).

    Raises:
        ValueError: feature_layer outside the encoder's blocks, or timm missing.
    """

    def __init__(self, config: ParGoVisionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if backbone is None:
            backbone = _build(config)
        # transformers 4 wraps CLIP and SigLIP once more than 5 does; without the wrapper both save
        # the same names.
        backbone = getattr(backbone, "vision_model", backbone)
        self.dropped = drop_unused(backbone, config)
        self.backbone = backbone
        if config.feature_norm:
            self.feature_norm = nn.LayerNorm(config.hidden_size).requires_grad_(False)

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Turn uint8 pixels 0..255 into normalised floats; floats are taken as normalised already."""
        if pixels.dtype != torch.uint8:
            return pixels.to(dtype)
        mean, std = _mean_and_std(
            tuple(self.config.image_mean), tuple(self.config.image_std), pixels.device
        )
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute features `(images, patches, hidden_size)` of pixels `(images, 3, height, width)`,
        uint8 or normalised float.

        Raises:
            ValueError: the encoder gave fewer patches than `num_patches`, the image has another
                size.
        """
        trains = any(p.requires_grad for p in self.backbone.parameters())
        if not trains and self.backbone.training:
            self.backbone.eval()
        dtype = next(self.backbone.parameters()).dtype
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            features = self.patch_features(self.normalise(pixels, dtype))
        if self.config.feature_norm:
            features = self.feature_norm(features)
        return features

    def patch_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the features `(images, patches, hidden_size)` of normalised pixels, before
        `feature_norm`. Raises ValueError as `forward`.
        """
        if self.config.library == "timm":
            features = timm_features(self.backbone, pixels)
        else:
            features = _transformers_features(self.backbone, pixels)
        if features.ndim == 4:  # CNN: (images, hidden_size, rows, columns)
            # (images, patches, hidden_size), raster order
            features = features.flatten(2).transpose(1, 2)
        if features.shape[1] < self.config.num_patches:
            raise ValueError(
                f"vision encoder {self.config.name}: {features.shape[1]} tokens for images of "
                f"{tuple(pixels.shape[-2:])} pixels, expected {self.config.num_patches} patches "
                f"(vision_config.image_size {self.config.image_size}, num_patches {self.config.num_patches})"
            )
        prefix = features.shape[1] - self.config.num_patches
        return features[:, prefix:]

    def load_backbone(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Copy pretrained weights into the encoder; only weights of parts that were left out may be
        unknown.

        Raises:
            ValueError: missing, unexpected or misshapen keys.
        """
        own = self.backbone.state_dict()
        missing = sorted(own.keys() - state_dict.keys())
        unknown = state_dict.keys() - own.keys()
        left_out = (*self.dropped, *CLASSIFIERS)
        unexpected = sorted(key for key in unknown if not key.startswith(left_out))
        common = own.keys() & state_dict.keys()
        misshapen = sorted(k for k in common if own[k].shape != state_dict[k].shape)
        if missing or unexpected or misshapen:
            raise ValueError(
                f"weights do not fit vision encoder {self.config.name}: missing {missing[:5]} ({len(missing)}), "
                f"unexpected {unexpected[:5]} ({len(unexpected)}), other shape {misshapen[:5]} ({len(misshapen)})"
            )
        self.backbone.load_state_dict({key: state_dict[key] for key in own})


@lru_cache(maxsize=8)
def _mean_and_std(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # Not buffers: transformers 5 leaves non-persistent buffers unset after from_pretrained.
    with torch.inference_mode(False):
        centre, scale = (torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, std))
    return centre, scale


def timm_features(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Compute the features of a timm encoder before `feature_norm`: `(images, tokens, hidden_size)`,
    or `(images, hidden_size, rows, columns)` of a convolutional network.
    """
    if _is_timm_vit(backbone):
        last = len(backbone.blocks) - 1
        (features,) = backbone.forward_intermediates(
            pixels, indices=[last], norm=False, output_fmt="NLC", intermediates_only=True
        )
        return features
    features = backbone.forward_features(pixels)
    if features.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    return features


def _transformers_features(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    layers = _transformers_layers(backbone)
    if layers is None:
        return backbone(pixel_values=pixels).last_hidden_state
    caught: list[torch.Tensor] = []

    # The hidden_states of the output differ between major versions in whether the last one is
    # normed.
    def catch(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple):
            output = output[0]
        caught.append(output)

    handle = layers[-1].register_forward_hook(catch)
    try:
        backbone(pixel_values=pixels)
    finally:
        handle.remove()
    return caught[0]


def _is_timm_vit(backbone: Any) -> bool:
    return hasattr(backbone, "forward_intermediates") and hasattr(backbone, "num_prefix_tokens")


def _transformers_layers(backbone: Any) -> nn.ModuleList | None:
    """The encoder's list of transformer blocks, or None where it has none (CNN)."""
    wanted = getattr(backbone.config, "num_hidden_layers", None)
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    return lists[0] if lists else None


def drop_unused(backbone: Any, config: ParGoVisionConfig) -> list[str]:
    """Remove blocks, norms and heads behind `feature_layer`, in place, and return the prefixes of
    what went.

    Raises:
        ValueError: feature_layer outside the encoder's blocks.
    """
    before = set(backbone.state_dict())
    if config.library == "timm":
        if _is_timm_vit(backbone):
            keep = _layer_index(config, len(backbone.blocks))
            backbone.prune_intermediate_layers([keep], prune_norm=True, prune_head=True)
        else:
            _layer_index(config, 1)
            backbone.reset_classifier(0)
    else:
        layers = _transformers_layers(backbone)
        if layers is None:
            _layer_index(config, 1)
        else:
            del layers[_layer_index(config, len(layers)) + 1 :]
            backbone.config.num_hidden_layers = len(layers)
            if getattr(backbone, "use_head", False):  # SigLIP's pooling head
                backbone.use_head = False
                del backbone.head
            for name in FINAL_NORMS:
                if isinstance(getattr(backbone, name, None), nn.Module):
                    setattr(backbone, name, nn.Identity())
    gone = before - set(backbone.state_dict())
    return sorted({_prefix(key) for key in gone})


def _prefix(key: str) -> str:
    """The module of a weight with its dot; the name of one that belongs to no module."""
    module, dot, _ = key.rpartition(".")
    if not dot:
        return key
    return module + dot


def _layer_index(config: ParGoVisionConfig, num_layers: int) -> int:
    index = config.feature_layer
    if index < 0:
        index += num_layers
    if not 0 <= index < num_layers:
        raise ValueError(
            f"vision_config.feature_layer {config.feature_layer}: encoder {config.name} has {num_layers} block(s), "
            f"expected {-num_layers}..{num_layers - 1}"
        )
    return index


def timm_module() -> ModuleType:
    """Import timm. Its import takes a second, for which encoders of transformers need not wait.

    Raises ValueError when it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(
            "this vision encoder comes from timm, which is not installed: pip install timm"
        ) from None
    return timm


def timm_arguments(name: str, image_size: int) -> dict[str, int]:
    """Return what timm is told to build an encoder for images of `image_size` pixels."""
    arguments = {"num_classes": 0}
    # Networks with position embeddings are built for one size; convolutional ones take no such
    # argument.
    if getattr(timm_module().get_pretrained_cfg(name), "fixed_input_size", False):
        arguments["img_size"] = image_size
    return arguments


def _build(config: ParGoVisionConfig) -> nn.Module:
    if config.library == "timm":
        return _build_timm(config)
    return _build_transformers(config)


def _build_timm(config: ParGoVisionConfig, pretrained: bool = False) -> nn.Module:
    return timm_module().create_model(
        config.name, pretrained=pretrained, **timm_arguments(config.name, config.image_size)
    )


def _build_transformers(config: ParGoVisionConfig) -> nn.Module:
    options: dict[str, Any] = {"dtype": torch.get_default_dtype()}
    if config._attn_implementation:  # None leaves the choice to transformers
        options["attn_implementation"] = config._attn_implementation
    return AutoModel.from_config(_inner_config(config), **options)


def _inner_config(config: ParGoVisionConfig) -> PretrainedConfig:
    assert config.hf_config is not None  # ParGoVisionConfig asks for it
    return AutoConfig.for_model(**config.hf_config)


def load_pretrained_vision(
    config: ParGoVisionConfig, source: str | None = None, revision: str | None = None
) -> VisionTower:
    """Return a tower with published weights: timm's own for `config.name`, or those of a Hub name
    or folder `source`.
    """
    if config.library == "timm":
        return VisionTower(config, _build_timm(config, pretrained=True))
    backbone = AutoModel.from_pretrained(
        source or config.name, config=_inner_config(config), revision=revision
    )
    return VisionTower(config, backbone)


def reset_non_persistent_buffers(module: nn.Module) -> None:
    """Recompute what a checkpoint does not hold (rotary tables of timm's EVA).

    transformers 5 leaves such buffers as uninitialised memory after from_pretrained.
    """
    recompute = getattr(module, "init_non_persistent_buffers", None)
    if recompute is not None:
        recompute()
