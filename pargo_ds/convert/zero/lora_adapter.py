"""LoRA of a checkpoint: merged into one layer's weight after another, or written as the adapter folder of peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pargo_ds.convert.weight_files import write_safetensors
from pargo_ds.convert.weights import BASE_LAYER, LLM, LORA, Spec

ADAPTER_NAME = "default"
PEFT_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


class LoraAdapter:
    """The adapters of a model whose values lie elsewhere.

    Args:
        model: with its adapters, on the meta device.
        trained: reads a trained parameter by its name in that model, whole and in fp32.
        dtype: of the adapter folder.
        where: the checkpoint, for messages.
    """

    def __init__(
        self, model: nn.Module, trained: Callable[[str], torch.Tensor], dtype: torch.dtype, where: Path
    ) -> None:
        from peft.tuners.lora import LoraLayer

        self.llm, self.trained, self.where = model.llm, trained, where
        wrapped = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        self.layers = {name.replace(BASE_LAYER, ""): (name, module) for name, module in wrapped.items()}
        named = {name: p for name, p in model.named_parameters() if LORA in name}
        self._names = {PEFT_PREFIX + n.removeprefix(LLM).replace(f".{ADAPTER_NAME}", ""): n for n in named}
        self.specs = {key: Spec(tuple(named[name].shape), dtype) for key, name in self._names.items()}

    def merge(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        """`values`, the weight of a layer that has an adapter, with it added, in fp32."""
        prefix, module = self.layers[layer]
        empty = {name: tensor for name, tensor in module.state_dict().items() if "lora_" in name}
        with torch.no_grad():
            module.load_state_dict({n: self.trained(f"{prefix}.{n}") for n in empty}, strict=False, assign=True)
            delta = module.get_delta_weight(ADAPTER_NAME)
            module.load_state_dict(empty, strict=False, assign=True)
            return delta.add_(values)

    def read(self, name: str) -> torch.Tensor:
        """One tensor of the adapter folder."""
        return self.trained(self._names[name]).to(self.specs[name].dtype)

    def write(self, folder: Path) -> None:
        """The adapters as peft saves them: `PeftModel.from_pretrained(model.llm, folder)` puts them back."""
        folder.mkdir(parents=True)
        self.llm.peft_config[ADAPTER_NAME].save_pretrained(folder)
        write_safetensors(folder / WEIGHTS, self.specs, self, lambda _: None)
