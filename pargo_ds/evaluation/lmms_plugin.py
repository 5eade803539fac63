"""What lmms-eval finds under the entry point `lmms_eval.models` of setup.py: the model `pargo`.

Apart from the model itself, so that lmms-eval may load it while its own modules are half imported;
without lmms-eval nothing imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return name and class of the model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = "pargo_ds.evaluation.lmms_adapter.ParGoForLmmsEval"
    return ModelManifest("pargo", simple_class_path=path)
