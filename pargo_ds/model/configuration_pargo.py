"""The configuration of a ParGo model, which contains those of vision encoder, projector and LLM."""

import copy
import warnings
from typing import Any

import transformers
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig

from .projectors import ProjectorConfig, projector_config

IGNORE_INDEX = -100
IMAGE_PLACEHOLDER = "<image>"

TESTED_TRANSFORMERS = ("4.57", "5.17", "5.24")


def check_transformers(version: str) -> None:
    """Warn of a version of transformers that was not tested with this model.

    Raises:
        ImportError: the version is older than the oldest tested one, and lacks what the model
            needs.
    """
    tested, found = ", ".join(TESTED_TRANSFORMERS), Version(version)
    if found.release[:2] < Version(TESTED_TRANSFORMERS[0]).release:
        raise ImportError(
            f"transformers {version} is too old for ParGo models, which need {TESTED_TRANSFORMERS[0]} or later "
            f"(tested: {tested}); pip install -U transformers"
        )
    if ".".join(map(str, found.release[:2])) not in TESTED_TRANSFORMERS:
        warnings.warn(
            f"ParGo models were never tested with transformers {version} (tested: {tested}); compare an answer with "
            "one of a tested version before you rely on it",
            stacklevel=2,
        )


check_transformers(transformers.__version__)


class ParGoVisionConfig(PretrainedConfig):
    """The configuration of the vision encoder and of its features.

    Args:
        library: "timm" or "transformers".
        name: timm's model name, or where the transformers weights came from (information only for
            that library).
        hf_config: the transformers vision model's own configuration as a dict (with `model_type`);
            None for timm.
        image_size: side of the square image, pixels.
        hidden_size: width of a patch feature.
        num_patches: patches per image, class and register tokens not counted.
        feature_layer: block whose output is used, negative counts from the end; -1 is the last
            block before the final norm (paper's release). Networks without blocks (CNN) have only
            -1, their last feature map.
        feature_norm: apply a frozen LayerNorm to the feature (paper's release: yes).
        image_mean, image_std: normalisation of pixels in 0..1, per channel.

    Raises:
        ValueError: unknown library, or a transformers encoder without `hf_config`.
    """

    model_type = "pargo_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        library: str = "timm",
        name: str = "eva02_large_patch14_clip_336",
        hf_config: dict[str, Any] | None = None,
        image_size: int = 336,
        hidden_size: int = 1024,
        num_patches: int = 576,
        feature_layer: int = -1,
        feature_norm: bool = True,
        image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if library not in ("timm", "transformers"):
            raise ValueError(
                f"vision_config.library is '{library}': expected 'timm' or 'transformers'"
            )
        if library == "transformers" and not (hf_config and hf_config.get("model_type")):
            raise ValueError(
                "vision_config.library 'transformers' needs hf_config, a dict with a model_type"
            )
        self.library = library
        self.name = name
        self.hf_config = hf_config
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.num_patches = num_patches
        self.feature_layer = feature_layer
        self.feature_norm = feature_norm
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)


class ParGoConfig(PretrainedConfig):
    """Vision encoder + projector + causal LM.

    Args:
        vision_config: a ParGoVisionConfig, or its dict.
        projector_config: the configuration of any projector, or its dict (projectors.py).
        text_config: any causal LM's configuration, or its dict (with `model_type`).
        image_token_id: token that marks an image's place. It may lie outside the LLM's vocabulary:
            it is replaced before the embedding look-up and never generated.

    Raises:
        ValueError: a text_config dict without model_type, or a negative image_token_id.
    """

    model_type = "pargo"
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
    ]  # Trainer gathers what else an output has
    sub_configs = {
        "vision_config": ParGoVisionConfig,
        "projector_config": ProjectorConfig,
        "text_config": AutoConfig,  # type: ignore[dict-item]  # as transformers' own models have it
    }

    def __init__(
        self,
        vision_config: ParGoVisionConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        projector_config: ProjectorConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        if image_token_id < 0:
            raise ValueError(f"image_token_id is {image_token_id}: expected a token id >= 0")
        self.vision_config = _as_vision_config(vision_config)
        self.projector_config = _as_projector_config(projector_config)
        self.text_config = _as_text_config(text_config)
        self.image_token_id = image_token_id
        # The LLM ties its weights; the flag of the whole model only has to agree with it.
        kwargs["tie_word_embeddings"] = bool(
            getattr(self.text_config, "tie_word_embeddings", False)
        )
        super().__init__(**kwargs)

    @property
    def visual_tokens(self) -> int:
        """Tokens that one image occupies in the LLM's sequence."""
        return self.projector_config.visual_tokens(self.vision_config.num_patches)


def _as_vision_config(value: ParGoVisionConfig | dict[str, Any] | None) -> ParGoVisionConfig:
    if isinstance(value, ParGoVisionConfig):
        return value
    return ParGoVisionConfig(**{k: v for k, v in (value or {}).items() if k != "model_type"})


def _as_projector_config(value: ProjectorConfig | dict[str, Any] | None) -> ProjectorConfig:
    if isinstance(value, ProjectorConfig):
        return value
    return projector_config(value or {})


def _as_text_config(value: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        # Often an LLM's own, and transformers resets the attention implementation of a
        # sub-configuration.
        return copy.deepcopy(value)
    if value is None:
        return AutoConfig.for_model("llama")
    if not value.get("model_type"):
        raise ValueError(
            "text_config needs a model_type, such as 'llama', to know which language model to build"
        )
    return AutoConfig.for_model(**value)
