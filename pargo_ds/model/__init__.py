"""The model. All files of this folder are written beside exported weights. Importing the package
registers the Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .configuration_pargo import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    ParGoConfig,
    ParGoVisionConfig,
)
from .encoder_configs import vision_config_from_timm, vision_config_from_transformers
from .headless_pargo import ParGoModel
from .image_processing_pargo import ParGoImageProcessor
from .modeling_pargo import ParGoForConditionalGeneration
from .outputs_pargo import ParGoOutput
from .processing_pargo import ParGoProcessor
from .projector_pargo import PargoProjector, ParGoProjectorConfig
from .projectors import (
    Projector,
    ProjectorConfig,
    build_projector,
    projector_config,
    projector_types,
)
from .vision import VisionTower, load_pretrained_vision

__all__ = [
    "IGNORE_INDEX",
    "IMAGE_PLACEHOLDER",
    "ParGoConfig",
    "ParGoForConditionalGeneration",
    "ParGoImageProcessor",
    "ParGoModel",
    "ParGoOutput",
    "ParGoProcessor",
    "ParGoProjectorConfig",
    "ParGoVisionConfig",
    "PargoProjector",
    "Projector",
    "ProjectorConfig",
    "VisionTower",
    "build_projector",
    "load_pretrained_vision",
    "projector_config",
    "projector_types",
    "register",
    "vision_config_from_timm",
    "vision_config_from_transformers",
]


def register() -> None:
    """Register our configuration, model, processor and image processor with the Auto classes, under
    the model_type "pargo".
    """
    AutoConfig.register(ParGoConfig.model_type, ParGoConfig, exist_ok=True)
    AutoModel.register(ParGoConfig, ParGoModel, exist_ok=True)
    AutoModelForImageTextToText.register(ParGoConfig, ParGoForConditionalGeneration, exist_ok=True)
    AutoModelForCausalLM.register(ParGoConfig, ParGoForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ParGoConfig, ParGoProcessor, exist_ok=True)
    AutoImageProcessor.register(
        ParGoConfig, slow_image_processor_class=ParGoImageProcessor, exist_ok=True
    )


register()
