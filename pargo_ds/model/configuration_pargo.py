"""Configurations of a ParGo model: vision encoder, projector and language model under one roof."""

import copy
import warnings
from typing import Any

import transformers
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig

from .masks import CASCADES, GROUPINGS

NORMS = ("pre", "post")

IGNORE_INDEX = -100
IMAGE_PLACEHOLDER = "<image>"

TESTED_TRANSFORMERS = ("4.57", "5.17", "5.24")


def check_transformers(version: str) -> None:
    """Warn of a transformers that was never tested with this model.

    Raises:
        ImportError: one older than the oldest tested; it lacks what the model is built on.
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
    """Which encoder, and which of its features.

    Args:
        library: "timm" or "transformers".
        name: timm's model name, or where the transformers weights came from (information only for that library).
        hf_config: the transformers vision model's own configuration as a dict (with `model_type`); None for timm.
        image_size: side of the square picture, pixels.
        hidden_size: width of a patch feature.
        num_patches: patches per picture, class and register tokens not counted.
        feature_layer: block whose output is used, negative counts from the end; -1 is the last block before the final
            norm (paper's release). Networks without blocks (CNN) have only -1, their last feature map.
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
            raise ValueError(f"vision_config.library is '{library}': expected 'timm' or 'transformers'")
        if library == "transformers" and not (hf_config and hf_config.get("model_type")):
            raise ValueError("vision_config.library 'transformers' needs hf_config, a dict with a model_type")
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


class ParGoProjectorConfig(PretrainedConfig):
    """Shape of the projector. Defaults are this project's: the paper does not publish depth, width or heads.

    Args:
        type: name in the projector registry.
        partial_tokens, global_tokens: learned tokens; the paper uses 288 + 16 for 576 patches.
        layers, width, heads: depth d, hidden size and attention heads.
        ffn_width: inner width of the feed-forward network; None means 4 * width.
        cascade: shifted | centered | each_side | none | release (masks.cascade_window).
        grouping: raster (the paper) | block (2-D, ours): which patches a partial token sees (masks.patches_of_partial).
        dropout: on each residual branch.
        query_std: standard deviation of the learned tokens at the start.
        output_std: standard deviation of the visual tokens at the start; set it to that of the LLM's embeddings.
        soft_prompt: each visual token has a learned part that no image changes, where it starts (ours; Lester et al.,
            arXiv 2104.08691, for the word); False: the paper's and the release's projector.
        norm: pre (LayerNorm before each branch, over the patches and at the end) | post (BERT's order, as the authors'
            release has it: over the tokens and after each residual sum; the patches come as `feature_norm` left them).
        norm_eps: epsilon of the projector's LayerNorms; BERT's is 1e-12.
        query_positions: add learned position embeddings to the learned tokens, as the authors' release does.

    Raises:
        ValueError: unknown cascade, grouping or norm, a width that the heads do not divide, or no tokens.
    """

    model_type = "pargo_projector"
    base_config_key = "projector_config"

    def __init__(
        self,
        type: str = "pargo",
        partial_tokens: int = 288,
        global_tokens: int = 16,
        layers: int = 6,
        width: int = 1024,
        heads: int = 16,
        ffn_width: int | None = None,
        cascade: str = "shifted",
        dropout: float = 0.0,
        query_std: float = 0.5,
        output_std: float = 0.02,
        grouping: str = "raster",
        norm: str = "pre",
        norm_eps: float = 1e-5,
        query_positions: bool = False,
        soft_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if cascade not in CASCADES:
            raise ValueError(f"unknown projector.cascade '{cascade}': choose one of {', '.join(CASCADES)}")
        if grouping not in GROUPINGS:
            raise ValueError(f"unknown projector.grouping '{grouping}': choose one of {', '.join(GROUPINGS)}")
        if norm not in NORMS:
            raise ValueError(f"unknown projector.norm '{norm}': choose one of {', '.join(NORMS)}")
        if width % heads:
            raise ValueError(f"projector.width {width} is not a multiple of projector.heads {heads}")
        if min(partial_tokens, global_tokens) < 0 or partial_tokens + global_tokens < 1 or layers < 1:
            raise ValueError(
                f"projector: {partial_tokens} partial tokens, {global_tokens} global tokens, {layers} layers; "
                "need at least one token and one layer"
            )
        self.type = type
        self.partial_tokens = partial_tokens
        self.global_tokens = global_tokens
        self.layers = layers
        self.width = width
        self.heads = heads
        self.ffn_width = 4 * width if ffn_width is None else ffn_width
        self.cascade = cascade
        self.grouping = grouping
        self.dropout = dropout
        self.query_std = query_std
        self.output_std = output_std
        self.norm = norm
        self.norm_eps = norm_eps
        self.query_positions = query_positions
        self.soft_prompt = soft_prompt

    @property
    def visual_tokens(self) -> int:
        """Tokens that one picture occupies in the LLM's sequence."""
        return self.partial_tokens + self.global_tokens


class ParGoConfig(PretrainedConfig):
    """Vision encoder + projector + causal LM.

    Args:
        vision_config, projector_config: the objects above, or their dicts.
        text_config: any causal LM's configuration, or its dict (with `model_type`).
        image_token_id: token that marks a picture's place. It may lie outside the LLM's vocabulary: it is replaced
            before the embedding look-up and never generated.

    Raises:
        ValueError: a text_config dict without model_type, or a negative image_token_id.
    """

    model_type = "pargo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # Trainer gathers what else an output has
    sub_configs = {
        "vision_config": ParGoVisionConfig,
        "projector_config": ParGoProjectorConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: ParGoVisionConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        projector_config: ParGoProjectorConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        if image_token_id < 0:
            raise ValueError(f"image_token_id is {image_token_id}: expected a token id >= 0")
        self.vision_config = _as_config(vision_config, ParGoVisionConfig)
        self.projector_config = _as_config(projector_config, ParGoProjectorConfig)
        self.text_config = _as_text_config(text_config)
        self.image_token_id = image_token_id
        # Tying is the LLM's own affair; the outer flag only has to agree with it.
        kwargs["tie_word_embeddings"] = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)

    @property
    def visual_tokens(self) -> int:
        """Tokens that one picture occupies in the LLM's sequence."""
        return self.projector_config.visual_tokens


def _as_config(value: PretrainedConfig | dict[str, Any] | None, cls: type[PretrainedConfig]) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    return cls(**{k: v for k, v in (value or {}).items() if k != "model_type"})


def _as_text_config(value: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        # Often an LLM's own, and transformers resets the attention implementation of a sub-configuration.
        return copy.deepcopy(value)
    if value is None:
        return AutoConfig.for_model("llama")
    if not value.get("model_type"):
        raise ValueError("text_config needs a model_type, such as 'llama', to know which language model to build")
    return AutoConfig.for_model(**value)
