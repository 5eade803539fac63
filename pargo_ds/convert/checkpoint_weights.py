"""A training checkpoint as a source of weights: fragments for what trained, the run's own parts for what did not.

The frozen parts are built once, as the run built them, and checked against the hashes in the manifest; trained tensors
are read from the fragments when they are asked for. LoRA is merged on the way, in fp32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pargo_ds.checkpoint.fragments import WEIGHT, FragmentFiles
from pargo_ds.checkpoint.frozen import check_frozen, frozen_hashes
from pargo_ds.checkpoint.manifest import CheckpointError, read_manifest, verify_files
from pargo_ds.config import parse_config
from pargo_ds.convert.weights import Spec, WeightSource, check_names, expected_shapes
from pargo_ds.convert.zero_to_hf import find_checkpoint, model_card, tied_names
from pargo_ds.model import ParGoProcessor
from pargo_ds.training import assembly
from pargo_ds.training.freezing import apply_freezing

BASE_LAYER = "base_layer."
LORA = ".lora_"


class CheckpointWeights(WeightSource):
    """A checkpoint of format 2 (a step folder, or a run's folder), in the run's precision.

    Raises:
        CheckpointError: it is damaged, of the old format, or does not fit the frozen parts that it names.
        ConfigError: these parts cannot be had.
    """

    def __init__(self, path: Path) -> None:
        self.where = find_checkpoint(path)
        self.manifest = read_manifest(self.where)
        if self.manifest.format_version == 1:
            raise CheckpointError(f"{self.where} has the old format 1; convert it with zero-to-hf, then hf-to-megatron")
        verify_files(self.where, self.manifest)
        self.run = parse_config(self.manifest.config, source=str(self.where / "manifest.json"))
        self._processor = assembly.build_processor(self.run)
        self.model = assembly.build_model(self.run, self._processor, settings=None)
        apply_freezing(self.model, self.run.train)
        self._check_model()
        self.config = self.model.config
        self.files = FragmentFiles(self.where, self.manifest.parameters)
        self.dtype = assembly.dtype_of(self.run)
        self.layers = lora_layers(self.model)
        self._names = self._model_names()
        shapes = {name: tuple(self._values[full].shape) for name, full in self._names.items()}
        check_names(self.where, shapes, expected_shapes(self.config))
        self.specs = {name: Spec(shape, self._dtype_of(self._names[name])) for name, shape in shapes.items()}
        self._leave_trained_to_the_files()

    def _check_model(self) -> None:
        if assembly.model_fingerprint(self.model) != self.manifest.model_fingerprint:
            raise CheckpointError(
                f"the frozen parts named in {self.where} now describe another model: {self.manifest.frozen_sources}; "
                "put back what the run was trained with"
            )
        check_frozen(frozen_hashes(self.model), self.manifest.frozen, str(self.where))
        trained = {n: tuple(p.shape) for n, p in self.model.named_parameters() if p.requires_grad}
        check_names(self.where, {n: tuple(s) for n, s in self.manifest.parameters.items()}, trained)

    def _model_names(self) -> dict[str, str]:
        """Exported name -> name in the model with its adapters."""
        self._values = self.model.state_dict()
        aliases = tied_names(self.model)
        full = [name for name in self._values if LORA not in name and name not in aliases]
        return {name.replace(BASE_LAYER, ""): name for name in full}

    def _leave_trained_to_the_files(self) -> None:
        """Free what the files hold; LoRA's small matrices go into the layers, which know how to merge them."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.manifest.parameters:
                    self._values[name] = self._values[name].to("meta")
                    is_lora = LORA in name
                    parameter.data = self.files.whole(WEIGHT, name).clone() if is_lora else torch.empty(0)

    def _dtype_of(self, full: str) -> torch.dtype:
        dtype = self._values[full].dtype
        return self.dtype if dtype.is_floating_point else dtype

    def read(self, name: str) -> torch.Tensor:
        full = self._names[name]
        trained = full in self.manifest.parameters
        values = self.files.whole(WEIGHT, full) if trained else self._values[full]
        layer = self.layers.get(name.removesuffix(".weight"))
        if layer is not None and name.endswith(".weight"):
            with torch.no_grad():
                values = values.float() + layer.get_delta_weight("default")
        return values.to(self._dtype_of(full))

    def processor(self) -> ParGoProcessor:
        return self._processor

    def write_description(self, folder: Path) -> None:
        config, generation = self.model.config, self.model.generation_config
        config.architectures = [type(self.model).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        # Answers end with the prompt's end-of-turn token, whatever the LLM's own file says.
        generation.eos_token_id = self._processor.stop_token_ids
        generation.pad_token_id = self._processor.tokenizer.pad_token_id
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        generation.save_pretrained(folder)
        self._processor.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(self.run, self.manifest, bool(self.layers), True))


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Adapted layers by their exported names."""
    from peft.tuners.lora import LoraLayer

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {name.replace(BASE_LAYER, ""): module for name, module in found.items()}
