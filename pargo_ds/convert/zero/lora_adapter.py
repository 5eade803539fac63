"""The LoRA adapters of a checkpoint. They are merged into the weights layer by layer, or written as
a folder of peft.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pargo_ds.convert.weight_files import write_safetensors
from pargo_ds.convert.weights import LLM, LORA, Spec, exported_name
from pargo_ds.model import ParGoForConditionalGeneration

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_NAME = "default"
PEFT_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


class LoraAdapter:
    """The adapters of a model whose values are read from a checkpoint.

    Args:
        model: the model with its adapters, on the meta device.
        trained: reads a trained parameter by its name in the model, whole and in fp32.
        dtype: type of the weights in the folder of peft.
        where: the checkpoint, for messages.
    """

    def __init__(
        self,
        model: ParGoForConditionalGeneration,
        trained: Callable[[str], torch.Tensor],
        dtype: torch.dtype,
        where: Path,
    ) -> None:
        from peft.tuners.lora import LoraLayer

        self.llm, self.trained, self.where = model.llm, trained, where
        # Any: LoraLayer is a mixin, which does not say that it is a module.
        self.layers: dict[str, tuple[str, Any]] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                self.layers[exported_name(name)] = name, module
        self._names: dict[str, str] = {}
        self.specs: dict[str, Spec] = {}
        for name, parameter in model.named_parameters():
            if LORA in name:
                key = PEFT_PREFIX + name.removeprefix(LLM).replace(f".{ADAPTER_NAME}", "")
                self._names[key] = name
                self.specs[key] = Spec(tuple(parameter.shape), dtype)

    def merge(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """Add the adapter of a layer to `values`, the weight of the layer, in fp32."""
        prefix, module = self.layers[layer]
        empty = {name: tensor for name, tensor in module.state_dict().items() if "lora_" in name}
        with torch.no_grad():
            trained = {name: self.trained(f"{prefix}.{name}") for name in empty}
            module.load_state_dict(trained, strict=False, assign=True)
            delta = module.get_delta_weight(ADAPTER_NAME)
            module.load_state_dict(empty, strict=False, assign=True)
            return delta.add_(values)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor of the folder of peft."""
        return self.trained(self._names[name]).to(self.specs[name].dtype)

    def write(self, folder: Path) -> None:
        """Write the adapters as peft saves them; `PeftModel.from_pretrained(model.llm, folder)`
        adds them to the LLM.
        """
        folder.mkdir(parents=True)
        settings = cast("dict[str, PeftConfig]", self.llm.peft_config)
        settings[ADAPTER_NAME].save_pretrained(str(folder))
        write_safetensors(folder / WEIGHTS, self.specs, self, lambda _: None)
