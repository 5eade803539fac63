"""The model: everything in this folder ships with the weights. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .configuration_pargo import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    ParGoConfig,
    ParGoProjectorConfig,
    ParGoVisionConfig,
)
from .image_processing_pargo import ParGoImageProcessor
from .modeling_pargo import ParGoForConditionalGeneration
from .outputs_pargo import ParGoOutput
from .processing_pargo import ParGoProcessor
from .projector_pargo import PargoProjector
from .projectors import PROJECTORS, build_projector
from .vision import (
    VisionTower,
    load_pretrained_vision,
    vision_config_from_timm,
    vision_config_from_transformers,
)

__all__ = [
    "IGNORE_INDEX",
    "IMAGE_PLACEHOLDER",
    "PROJECTORS",
    "ParGoConfig",
    "ParGoForConditionalGeneration",
    "ParGoImageProcessor",
    "ParGoOutput",
    "ParGoProcessor",
    "ParGoProjectorConfig",
    "ParGoVisionConfig",
    "PargoProjector",
    "VisionTower",
    "build_projector",
    "load_pretrained_vision",
    "register",
    "vision_config_from_timm",
    "vision_config_from_transformers",
]


def register() -> None:
    """Make the Auto classes of configuration, model, processor and image processor know model_type "pargo"."""
    AutoConfig.register(ParGoConfig.model_type, ParGoConfig, exist_ok=True)
    AutoModelForImageTextToText.register(ParGoConfig, ParGoForConditionalGeneration, exist_ok=True)
    AutoModelForCausalLM.register(ParGoConfig, ParGoForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ParGoConfig, ParGoProcessor, exist_ok=True)
    AutoImageProcessor.register(ParGoConfig, slow_image_processor_class=ParGoImageProcessor, exist_ok=True)


register()
