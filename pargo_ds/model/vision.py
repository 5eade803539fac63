"""Any Hugging Face or timm vision encoder as patch features `(images, patches, hidden_size)`.

The feature is the output of one block before the encoder's final norm, then a LayerNorm of our own without trained
values; class, prefix and register tokens are dropped (bytedance/ParGo, for the paper's EVA-02-CLIP-L/14 at 336 px).
Blocks, norms and heads behind that block are not built, so that no parameter is left unused.
"""

import copy
import difflib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import ModuleType

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig

from .configuration_pargo import ParGoVisionConfig
from .encoder_trial import TINY_ENCODER, EncoderError, tiny_encoder, try_out

CLASSIFIERS = ("head.", "fc.", "classifier.")  # timm's names; never built here
FINAL_NORMS = ("post_layernorm", "layernorm", "norm", "ln_post", "final_layer_norm")


class VisionTower(nn.Module):
    """Encoder named by the configuration; `backbone` may be a prebuilt (pretrained) encoder of that kind.

    It runs without a graph and in eval mode while none of its parameters wants a gradient (a frozen batch norm must not
    learn statistics).

    Raises:
        ValueError: feature_layer outside the encoder's blocks, or timm missing.
    """

    def __init__(self, config: ParGoVisionConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if backbone is None:
            backbone = _build_timm(config) if config.library == "timm" else _build_transformers(config)
        # transformers 4 wraps CLIP and SigLIP once more than 5 does; without the wrapper both save the same names.
        backbone = getattr(backbone, "vision_model", backbone)
        self.dropped = drop_unused(backbone, config)
        self.backbone = backbone
        if config.feature_norm:
            self.feature_norm = nn.LayerNorm(config.hidden_size).requires_grad_(False)

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 pixels 0..255 -> normalised floats; floats are taken as normalised already."""
        if pixels.dtype != torch.uint8:
            return pixels.to(dtype)
        mean, std = _mean_and_std(tuple(self.config.image_mean), tuple(self.config.image_std), pixels.device)
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(images, 3, height, width)`, uint8 or normalised float -> `(images, patches, hidden_size)`.

        Raises:
            ValueError: the encoder gave fewer patches than `num_patches`, the picture has another size.
        """
        trains = any(p.requires_grad for p in self.backbone.parameters())
        if not trains and self.backbone.training:
            self.backbone.eval()
        dtype = next(self.backbone.parameters()).dtype
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            features = self._features(self.normalise(pixels, dtype))
        if self.config.feature_norm:
            features = self.feature_norm(features)
        return features

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.config.library == "timm":
            features = _timm_features(self.backbone, pixels)
        else:
            features = _transformers_features(self.backbone, pixels)
        if features.ndim == 4:  # CNN: (images, hidden_size, rows, columns)
            features = features.flatten(2).transpose(1, 2)  # (images, patches, hidden_size), raster order
        if features.shape[1] < self.config.num_patches:
            raise ValueError(
                f"vision encoder {self.config.name}: {features.shape[1]} tokens for pictures of "
                f"{tuple(pixels.shape[-2:])} pixels, expected {self.config.num_patches} patches "
                f"(vision_config.image_size {self.config.image_size}, num_patches {self.config.num_patches})"
            )
        return features[:, features.shape[1] - self.config.num_patches :]  # prefix tokens come first

    def load_backbone(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Copy pretrained weights into the encoder; only weights of parts that were left out may be unknown.

        Raises:
            ValueError: missing, unexpected or misshapen keys.
        """
        own = self.backbone.state_dict()
        missing = sorted(own.keys() - state_dict.keys())
        unexpected = sorted(
            key for key in state_dict.keys() - own.keys() if not key.startswith((*self.dropped, *CLASSIFIERS))
        )
        misshapen = sorted(k for k in own.keys() & state_dict.keys() if own[k].shape != state_dict[k].shape)
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
        return tuple(torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, std))


def _timm_features(backbone: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
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


def _transformers_features(backbone: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    layers = _transformers_layers(backbone)
    if layers is None:
        return backbone(pixel_values=pixels).last_hidden_state
    caught = []

    # The hidden_states of the output differ between major versions in whether the last one is normed.
    def catch(_module: nn.Module, _inputs: tuple, output: object) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[-1].register_forward_hook(catch)
    try:
        backbone(pixel_values=pixels)
    finally:
        handle.remove()
    return caught[0]


def _is_timm_vit(backbone: nn.Module) -> bool:
    return hasattr(backbone, "forward_intermediates") and hasattr(backbone, "num_prefix_tokens")


def _transformers_layers(backbone: nn.Module) -> nn.ModuleList | None:
    """The encoder's list of transformer blocks, or None where it has none (CNN)."""
    wanted = getattr(backbone.config, "num_hidden_layers", None)
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    return lists[0] if lists else None


def drop_unused(backbone: nn.Module, config: ParGoVisionConfig) -> list[str]:
    """Remove blocks, norms and heads behind `feature_layer`, in place; returns the prefixes of what went.

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
    return sorted({key.rpartition(".")[0] + "." if "." in key else key for key in gone})


def _layer_index(config: ParGoVisionConfig, num_layers: int) -> int:
    index = config.feature_layer if config.feature_layer >= 0 else num_layers + config.feature_layer
    if not 0 <= index < num_layers:
        raise ValueError(
            f"vision_config.feature_layer {config.feature_layer}: encoder {config.name} has {num_layers} block(s), "
            f"expected {-num_layers}..{num_layers - 1}"
        )
    return index


def _timm() -> ModuleType:
    # Its import takes a second, for which encoders of transformers need not wait.
    try:
        import timm
    except ImportError:
        raise ValueError("this vision encoder comes from timm, which is not installed: pip install timm") from None
    return timm


def _timm_arguments(name: str, image_size: int) -> dict[str, int]:
    # Networks with position embeddings are built for one size; convolutional ones take no such argument.
    fixed = getattr(_timm().get_pretrained_cfg(name), "fixed_input_size", False)
    return {"num_classes": 0, **({"img_size": image_size} if fixed else {})}


def _build_timm(config: ParGoVisionConfig, pretrained: bool = False) -> nn.Module:
    return _timm().create_model(config.name, pretrained=pretrained, **_timm_arguments(config.name, config.image_size))


def _build_transformers(config: ParGoVisionConfig) -> nn.Module:
    # None leaves the choice to transformers.
    attention = {"attn_implementation": config._attn_implementation} if config._attn_implementation else {}
    return AutoModel.from_config(_inner_config(config), dtype=torch.get_default_dtype(), **attention)


def _inner_config(config: ParGoVisionConfig) -> PretrainedConfig:
    return AutoConfig.for_model(**config.hf_config)


def load_pretrained_vision(
    config: ParGoVisionConfig, source: str | None = None, revision: str | None = None
) -> VisionTower:
    """A tower with published weights: timm's own for `config.name`, or those of a Hub name or folder `source`."""
    if config.library == "timm":
        return VisionTower(config, _build_timm(config, pretrained=True))
    backbone = AutoModel.from_pretrained(source or config.name, config=_inner_config(config), revision=revision)
    return VisionTower(config, backbone)


def reset_non_persistent_buffers(module: nn.Module) -> None:
    """Recompute what a checkpoint does not hold (rotary tables of timm's EVA).

    transformers 5 leaves such buffers as uninitialised memory after from_pretrained.
    """
    if hasattr(module, "init_non_persistent_buffers"):
        module.init_non_persistent_buffers()


def vision_config_from_timm(name: str, image_size: int | None = None, **overrides: object) -> ParGoVisionConfig:
    """Configuration of a timm encoder, sizes measured on the meta device: no weights, no network.

    `image_size` defaults to the model's own; `overrides` are fields of ParGoVisionConfig. The feature norm is on for
    transformers and off for convolutional networks.

    Raises:
        ValueError: timm is missing or does not know the name; the encoder takes no images of this size, or would leave
            pixels at their edges unseen.
    """
    timm = _timm()
    try:
        data = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag behind the architecture's name that is none of its own
        raise ValueError(f"timm: {error}") from error
    if data is None:
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        hint = "names of other libraries, with an owner, need library: transformers" if "/" in name else hint
        raise ValueError(f"timm knows no model '{name}': {hint}")
    image_size = image_size or data.input_size[-1]

    def build() -> tuple[nn.Module, Callable]:
        backbone = timm.create_model(name, **_timm_arguments(name, image_size))
        return backbone, lambda pixels: _timm_features(backbone, pixels)

    features = try_out(name, image_size, "meta", build, own_size=data.input_size[-1])
    is_cnn = features.ndim == 4
    sizes = {
        "hidden_size": features.shape[1] if is_cnn else features.shape[2],
        "num_patches": features.shape[2] * features.shape[3] if is_cnn else features.shape[1],
    }
    known = {
        "library": "timm", "name": name, "image_size": image_size, **sizes, "feature_norm": not is_cnn,
        "image_mean": data.mean, "image_std": data.std,
    }  # fmt: skip
    return ParGoVisionConfig(**{**known, **overrides})


def vision_config_from_transformers(
    source: PretrainedConfig | str, revision: str | None = None, **overrides: object
) -> ParGoVisionConfig:
    """Configuration of a transformers encoder, from its configuration object, a Hub name or a folder.

    A configuration of an image-text pair (CLIPConfig, SiglipConfig) gives its `vision_config`. Mean and deviation
    default to CLIP's: pass `image_mean`, `image_std` where the encoder's preprocessor_config.json says otherwise.

    Raises:
        ValueError: the configuration has no image_size or patch_size, and `num_patches` is not given; the encoder takes
            no plain images of this size, gives no patches of them, or would leave pixels at their edges unseen.
    """
    name = source if isinstance(source, str) else (source._name_or_path or source.model_type)
    hf_config = AutoConfig.from_pretrained(source, revision=revision) if isinstance(source, str) else source
    hf_config = getattr(hf_config, "vision_config", hf_config)
    image_size, patch_size = getattr(hf_config, "image_size", None), getattr(hf_config, "patch_size", None)
    if "num_patches" not in overrides and not (isinstance(image_size, int) and isinstance(patch_size, int)):
        raise ValueError(
            f"{name}: its configuration ({hf_config.model_type}) has image_size {image_size} and patch_size "
            f"{patch_size}; expected two integers, or give image_size and num_patches"
        )
    hidden_size = getattr(hf_config, "hidden_size", None)
    if not isinstance(hidden_size, int) or hf_config.model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} ({hf_config.model_type}, hidden_size {hidden_size}) is no vision encoder that transformers builds "
            "on its own, with one feature for each patch; timm has most convolutional networks (library: timm)"
        )
    body = {k: v for k, v in hf_config.to_dict().items() if k not in ("transformers_version", "architectures")}
    body["model_type"] = hf_config.model_type
    known = {
        "library": "transformers", "name": name, "hf_config": body, "image_size": image_size,
        "hidden_size": hidden_size, "feature_norm": True,
    }  # fmt: skip
    if "num_patches" not in overrides:
        known["num_patches"] = (overrides.get("image_size", image_size) // patch_size) ** 2
    config = ParGoVisionConfig(**{**known, **overrides})
    _check_patches(config, own_size=image_size)
    return config


def _check_patches(config: ParGoVisionConfig, own_size: object) -> None:
    """ValueError unless an encoder of transformers gives the patches that its configuration says."""

    def build(tried: ParGoVisionConfig = config) -> tuple[nn.Module, Callable]:
        tower = VisionTower(tried)
        return tower, tower._features

    try:
        features = try_out(config.name, config.image_size, "meta", build, own_size)
    except EncoderError:
        # Rotary tables and others want a real device: a small copy with the same images and patches.
        small = copy.deepcopy(config)
        small.hf_config, small.hidden_size = tiny_encoder(config.hf_config), TINY_ENCODER["hidden_size"]
        small.feature_layer = max(config.feature_layer, -TINY_ENCODER["num_hidden_layers"])
        features = try_out(config.name, config.image_size, "cpu", partial(build, small), own_size)
        config = small
    found, expected = tuple(features.shape), (2, config.num_patches, config.hidden_size)
    if found != expected:
        raise ValueError(f"vision encoder {config.name} gives {found} for (images, patches, width), not {expected}")
