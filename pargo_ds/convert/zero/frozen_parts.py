"""Weights that a run did not train, read from where the run got them, one at a time.

What the run loaded from safetensors files is read there by memory map. What is in no file that can be read so (random
weights, timm's own download, older formats, keys that transformers renames) is built in memory as the run built it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.convert.weights import BASE_LAYER, LLM
from pargo_ds.convert.zero.published_files import PublishedFiles, Reader
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor
from pargo_ds.training import assembly

log = logging.getLogger("pargo_ds")
VISION, BACKBONE = "vision.", "vision.backbone."
Shapes = Mapping[str, tuple[int, ...]]
PIECE = 1 << 15
"""Elements of the embedding measured at a time."""


class FrozenParts:
    """Values of some weights of a run, by their exported names.

    Args:
        run: where they come from, and the precision they are wanted in.
        skeleton: the model on the meta device.
        wanted: exported name -> shape.
        processor: the run's, for models that are built as a whole.
        measure_embedding: find `output_std`, even when no weight of the LLM is wanted.

    Raises:
        ConfigError: a source that the run names cannot be had, or lacks weights.
        CheckpointError: a file of it cannot be read.
    """

    def __init__(
        self,
        run: RunConfig,
        skeleton: ParGoForConditionalGeneration,
        wanted: Shapes,
        processor: ParGoProcessor,
        measure_embedding: bool = True,
    ) -> None:
        self.run, self.skeleton, self.dtype = run, skeleton, assembly.dtype_of(run)
        self._dtypes = {name.replace(BASE_LAYER, ""): tensor.dtype for name, tensor in skeleton.state_dict().items()}
        self.folders: list[Path] = []
        """Local ones that were read from."""
        self.output_std: float | None = None
        """Standard deviation of the LLM's embedding, which the run measured; None when an exported folder knows it."""
        self._readers: dict[str, Reader] = {}
        if not wanted and not (measure_embedding and run.start_from is None):
            return
        if run.start_from is not None:
            self._take_export(run.start_from, wanted)
        elif is_drawn(run):
            log.warning("frozen weights are random: the whole model is built in memory, as the run built it")
            built = assembly.build_model(run, processor, settings=None)
            self._keep(built, "", wanted)
            self.output_std = built.config.projector_config.output_std
        else:
            of_llm = {name: shape for name, shape in wanted.items() if name.startswith(LLM)}
            if of_llm or measure_embedding:
                self._take_llm(of_llm)
            self._take_vision({name: shape for name, shape in wanted.items() if name.startswith(VISION)})

    def read(self, name: str) -> torch.Tensor:
        """One tensor in the run's precision."""
        return self.cast(name, self.stored(name))

    def stored(self, name: str) -> torch.Tensor:
        """One tensor as its file holds it, without a copy."""
        return self._readers[name]()

    def cast(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Any piece of a tensor, in the type that training holds: the run's precision, or fp32 for some buffers."""
        return values.to(self._dtypes[name]) if values.is_floating_point() else values

    def _keep(self, built: nn.Module, prefix: str, wanted: Iterable[str]) -> None:
        values = built.state_dict()
        self._readers |= {name: _held(values[name.removeprefix(prefix)].detach()) for name in wanted}

    def _find(self, name: str, revision: str | None = None) -> PublishedFiles | None:
        if Path(name).is_dir():
            self.folders.append(Path(name))
        return PublishedFiles.find(name, revision)

    def _take_export(self, folder: str, wanted: Shapes) -> None:
        files = self._find(folder)
        readers = files and files.locate(wanted, [lambda name: name])
        if readers:
            self._readers |= readers
        else:
            _say_built(f"start_from {folder}")
            self._keep(assembly.load_exported(self.run, None).to(self.dtype), "", wanted)

    def _take_llm(self, wanted: Shapes) -> None:
        name, parameter = input_embedding(self.skeleton)
        source = self.run.llm
        files = None if source.weights == "random" else self._find(source.name, source.revision)
        base = f"{self.skeleton.llm.base_model_prefix}."
        namings = [lambda name: name.removeprefix(LLM), lambda name: name.removeprefix(LLM).removeprefix(base)]
        readers = files and files.locate({**wanted, name: tuple(parameter.shape)}, namings)
        if readers:
            self.output_std = spread(readers[name](), self.dtype)
            self._readers |= {name: readers[name] for name in wanted}
            return
        _say_built(f"LLM {source.name}")
        torch.manual_seed(self.run.seed)  # where it is random it was drawn first
        built = assembly.load_llm(self.run, self.skeleton.config.text_config, None)
        self.output_std = assembly.embedding_std(built)
        self._keep(built.to(self.dtype), LLM, wanted)

    def _take_vision(self, wanted: Shapes) -> None:
        backbone = {name: shape for name, shape in wanted.items() if name.startswith(BACKBONE)}
        for name in wanted.keys() - backbone.keys():  # the feature norm, which no file holds
            value = 1.0 if name.endswith(".weight") else 0.0
            self._readers[name] = _held(torch.full(wanted[name], value))
        if not backbone:
            return
        readers = self._vision_readers(backbone)
        if readers is None:
            _say_built(f"vision encoder {self.run.vision.name}")
            tower = assembly.load_vision(self.run, self.skeleton.config.vision_config)
            self._keep(tower.to(self.dtype), VISION, backbone)
        else:
            self._readers |= readers

    def _vision_readers(self, wanted: Shapes) -> dict[str, Reader] | None:
        vision, tower = self.run.vision, self.skeleton.vision
        if vision.weights is not None:
            path = Path(vision.weights)
            if path.suffix != ".safetensors" or not path.is_file():
                raise ConfigError(f"vision.weights: {vision.weights} is no safetensors file; nothing else is read")
            files = PublishedFiles([path])
            # The run's own rule about missing and unexpected names, on shapes alone.
            tower.load_backbone({key: torch.empty(shape, device="meta") for key, shape in files.shapes.items()})
            return files.locate(wanted, [lambda name: name.removeprefix(BACKBONE)])
        files = None if vision.library == "timm" else self._find(vision.name, vision.revision)
        if files is None:
            return None
        declared = str((tower.config.hf_config or {}).get("dtype"))
        if "16" in declared and any(map(files.is_fp32, files.shapes)):
            return None  # transformers 5 rounds to what the configuration declares before the run's own cast
        # Files of a whole image-text pair or classifier name the encoder before its weights.
        prefixes = ["", "vision_model.", f"{getattr(tower.backbone, 'base_model_prefix', '')}."]
        return files.locate(wanted, [lambda name, p=prefix: p + name.removeprefix(BACKBONE) for prefix in prefixes])


def input_embedding(model: ParGoForConditionalGeneration) -> tuple[str, nn.Parameter]:
    """Exported name and parameter of the LLM's word embeddings."""
    weight = model.get_input_embeddings().weight
    return next((n.replace(BASE_LAYER, ""), p) for n, p in model.named_parameters() if p is weight)


def is_drawn(run: RunConfig) -> bool:
    """Whether frozen weights came from the random number generator, so that only building all in order gives them."""
    if run.start_from is not None:
        return False
    drawn = {"vision": run.vision.weights == "random", "projector": True, "llm": run.llm.weights == "random"}
    return any(getattr(run.train, part).mode != "full" for part, is_random in drawn.items() if is_random)


def spread(values: torch.Tensor, dtype: torch.dtype) -> float:
    """Standard deviation of a weight cast to `dtype`: what torch says in fp32, up to its last digits."""
    pieces = values.reshape(-1).split(PIECE)
    mean = sum(float(piece.to(dtype).double().sum()) for piece in pieces) / values.numel()
    squares = sum(float((piece.to(dtype).double() - mean).square_().sum()) for piece in pieces)
    return float(torch.tensor((squares / (values.numel() - 1)) ** 0.5, dtype=torch.float32))


def _held(values: torch.Tensor) -> Reader:
    return lambda: values


def _say_built(what: str) -> None:
    log.warning("%s is not in safetensors files under the names of the model: built in memory, as the run did", what)
