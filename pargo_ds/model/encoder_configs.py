"""Make the configuration of a vision encoder. Its sizes are not looked up but tried out, on images of
the wanted size and before any weights are loaded.
"""

import copy
import difflib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from .configuration_pargo import ParGoVisionConfig
from .encoder_trial import TINY_ENCODER, EncoderError, tiny_encoder, try_out
from .vision import VisionTower, timm_arguments, timm_features, timm_module


def vision_config_from_timm(
    name: str, image_size: int | None = None, **overrides: Any
) -> ParGoVisionConfig:
    """Return the configuration of a timm encoder. Its sizes are measured on the meta device, without
    weights and network.

    `image_size` defaults to the model's own; `overrides` are fields of ParGoVisionConfig. The
    feature norm is on for transformers and off for convolutional networks.

    Raises:
        ValueError: timm is missing or does not know the name; the encoder takes no images of this
            size, or would leave pixels at their edges unseen.
    """
    timm = timm_module()
    try:
        data = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag behind the architecture's name that is none of its own
        raise ValueError(f"timm: {error}") from error
    if data is None:
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = "see timm.list_models()"
        if near:
            hint = f"did you mean {', '.join(near)}?"
        if "/" in name:
            hint = "names of other libraries, with an owner, need library: transformers"
        raise ValueError(f"timm knows no model '{name}': {hint}")
    image_size = image_size or data.input_size[-1]
    shape = _shape_from_timm(name, image_size, own_size=data.input_size[-1])
    is_cnn = len(shape) == 4
    if is_cnn:
        _, hidden_size, rows, columns = shape
        num_patches = rows * columns
    else:
        _, num_patches, hidden_size = shape
    known = {
        "library": "timm", "name": name, "image_size": image_size, "hidden_size": hidden_size,
        "num_patches": num_patches, "feature_norm": not is_cnn, "image_mean": data.mean, "image_std": data.std,
    }  # fmt: skip
    return ParGoVisionConfig(**{**known, **overrides})


@lru_cache
def _shape_from_timm(name: str, image_size: int, own_size: int) -> torch.Size:
    """Return the shape of the features of two images; a run asks several times."""

    def build() -> tuple[nn.Module, Callable]:
        backbone = timm_module().create_model(name, **timm_arguments(name, image_size))
        return backbone, lambda pixels: timm_features(backbone, pixels)

    return try_out(name, image_size, "meta", build, own_size).shape


def vision_config_from_transformers(
    source: PretrainedConfig | str, revision: str | None = None, **overrides: Any
) -> ParGoVisionConfig:
    """Return the configuration of a transformers encoder, from its configuration object, a Hub name
    or a folder.

    A configuration of an image-text pair (CLIPConfig, SiglipConfig) gives its `vision_config`. Mean
    and deviation default to CLIP's: pass `image_mean`, `image_std` where the encoder's
    preprocessor_config.json says otherwise.

    Raises:
        ValueError: the configuration has no image_size or patch_size, and `num_patches` is not
            given; the encoder takes no plain images of this size, gives no patches of them, or
            would leave pixels at their edges unseen.
    """
    if isinstance(source, str):
        name = source
        hf_config = AutoConfig.from_pretrained(source, revision=revision)
    else:
        name = source._name_or_path or source.model_type
        hf_config = source
    hf_config = getattr(hf_config, "vision_config", hf_config)
    image_size: Any = getattr(hf_config, "image_size", None)
    patch_size: Any = getattr(hf_config, "patch_size", None)
    if "num_patches" not in overrides and not (
        isinstance(image_size, int) and isinstance(patch_size, int)
    ):
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
    body = hf_config.to_dict()
    for key in ("transformers_version", "architectures"):
        body.pop(key, None)
    body["model_type"] = hf_config.model_type
    known: dict[str, Any] = {
        "library": "transformers", "name": name, "hf_config": body, "image_size": image_size,
        "hidden_size": hidden_size, "feature_norm": True,
    }  # fmt: skip
    if "num_patches" not in overrides:
        known["num_patches"] = (overrides.get("image_size", image_size) // patch_size) ** 2
    config = ParGoVisionConfig(**{**known, **overrides})
    _check_patches(config, own_size=image_size)
    return config


def _check_patches(config: ParGoVisionConfig, own_size: object) -> None:
    """Raise ValueError unless an encoder of transformers gives the patches that its configuration
    says.
    """

    def build(tried: ParGoVisionConfig = config) -> tuple[nn.Module, Callable]:
        tower = VisionTower(tried)
        return tower, tower.patch_features

    try:
        features = try_out(config.name, config.image_size, "meta", build, own_size)
    except EncoderError:
        # Rotary tables and others want a real device: a small copy with the same images and
        # patches.
        assert config.hf_config is not None
        small = copy.deepcopy(config)
        small.hf_config, small.hidden_size = (
            tiny_encoder(config.hf_config),
            TINY_ENCODER["hidden_size"],
        )
        small.feature_layer = max(config.feature_layer, -TINY_ENCODER["num_hidden_layers"])
        features = try_out(config.name, config.image_size, "cpu", partial(build, small), own_size)
        config = small
    found, expected = tuple(features.shape), (2, config.num_patches, config.hidden_size)
    if found != expected:
        raise ValueError(
            f"vision encoder {config.name} gives {found} for (images, patches, width), not {expected}"
        )
