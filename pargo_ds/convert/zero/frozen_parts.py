"""Read the weights that a run did not train, one at a time, from the sources of the run.

Weights that the run loaded from safetensors files are read from these files by memory map. All
others (random weights, timm's downloads, older formats, keys that transformers renames) are built
in memory, as the run built them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pargo_ds import assembly
from pargo_ds.config import RunConfig
from pargo_ds.convert.weights import LLM, check_names, exported_name
from pargo_ds.convert.zero.published_files import PublishedFiles, Reader
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor

log = logging.getLogger("pargo_ds")
VISION, BACKBONE = "vision.", "vision.backbone."
Shapes = Mapping[str, tuple[int, ...]]


class FrozenParts:
    """The values of frozen weights of a run by their exported names.

    Args:
        run: the run file, which names the sources and the precision.
        meta_model: the model on the meta device.
        wanted: shapes of the weights by their exported names.
        processor: the processor of the run, for a model that must be built as a whole.
        measure_embedding: compute `output_std`, which checkpoints of DeepSpeed alone do not
            contain.

    Raises:
        ConfigError: a source that the run names is not available, or lacks weights.
        CheckpointError: a file cannot be read.
    """

    def __init__(
        self,
        run: RunConfig,
        meta_model: ParGoForConditionalGeneration,
        wanted: Shapes,
        processor: ParGoProcessor,
        measure_embedding: bool,
    ) -> None:
        self.run, self.meta_model, self.dtype = run, meta_model, assembly.dtype_of(run)
        state = meta_model.state_dict()
        self._dtypes = {exported_name(name): tensor.dtype for name, tensor in state.items()}
        self.folders: list[Path] = []
        """Local folders from which weights were read."""
        self.output_std: float | None = None
        """Standard deviation of the LLM's embedding as the run computed it; None without
        `measure_embedding`.
        """
        self._readers: dict[str, Reader] = {}
        if not wanted and not (measure_embedding and run.start_from is None):
            return
        if run.start_from is not None:
            self._take_export(run.start_from, wanted)
        elif is_drawn(run):
            log.warning(
                "frozen weights are random: the whole model is built in memory, as the run built it"
            )
            built = assembly.build_model(run, processor, settings=None)
            self._keep("this run", built, "", wanted)
            if measure_embedding:
                self.output_std = built.config.projector_config.output_std
        else:
            of_llm = {name: shape for name, shape in wanted.items() if name.startswith(LLM)}
            if of_llm or measure_embedding:
                self._take_llm(of_llm, measure_embedding)
            of_vision = {name: shape for name, shape in wanted.items() if name.startswith(VISION)}
            self._take_vision(of_vision)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in the run's precision."""
        return self.cast(name, self.stored(name))

    def stored(self, name: str) -> torch.Tensor:
        """Return one tensor as it is stored, without a copy."""
        return self._readers[name]()

    def cast(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Convert a piece of a tensor to the type that the tensor has in training: the run's
        precision, or fp32 for some buffers.
        """
        if not values.is_floating_point():
            return values
        return values.to(self._dtypes[name])

    def _keep(self, source: str, built: nn.Module, prefix: str, wanted: Shapes) -> None:
        values = {prefix + name: tensor.detach() for name, tensor in built.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in values.items() if name in wanted}
        check_names(source, found, wanted)
        self._readers |= {name: _held(values[name]) for name in wanted}

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
            said = _say_built(f"start_from {folder}")
            model: nn.Module = assembly.load_exported(self.run, None)
            self._keep(said, model.to(self.dtype), "", wanted)

    def _take_llm(self, wanted: Shapes, measure: bool) -> None:
        source = self.run.llm
        name, parameter = input_embedding(self.meta_model)
        sought = dict(wanted)
        if measure:
            sought[name] = tuple(parameter.shape)
        files = None
        if source.weights != "random":
            files = self._find(source.name, source.revision)
        base = f"{self.meta_model.llm.base_model_prefix}."
        namings = [
            lambda name: name.removeprefix(LLM),
            lambda name: name.removeprefix(LLM).removeprefix(base),
        ]
        readers = files and files.locate(sought, namings)
        if readers:
            if measure:
                self.output_std = float(readers[name]().to(self.dtype).float().std())
            self._readers |= {name: readers[name] for name in wanted}
            return
        said = _say_built(f"LLM {source.name}")
        torch.manual_seed(self.run.seed)  # a random LLM is the first part that a run draws
        llm = assembly.load_llm(self.run, self.meta_model.config.text_config, None)
        if measure:
            self.output_std = assembly.embedding_std(llm)
        built: nn.Module = llm
        self._keep(said, built.to(self.dtype), LLM, wanted)

    def _take_vision(self, wanted: Shapes) -> None:
        backbone = {name: shape for name, shape in wanted.items() if name.startswith(BACKBONE)}
        for name in wanted.keys() - backbone.keys():  # the feature norm, which no file holds
            value = 1.0 if name.endswith(".weight") else 0.0
            self._readers[name] = _held(torch.full(wanted[name], value))
        if not backbone:
            return
        readers = self._vision_readers(backbone)
        if readers is None:
            said = _say_built(f"vision encoder {self.run.vision.name}")
            tower = assembly.load_vision(self.run, self.meta_model.config.vision_config)
            self._keep(said, tower.to(self.dtype), VISION, backbone)
        else:
            self._readers |= readers

    def _vision_readers(self, wanted: Shapes) -> dict[str, Reader] | None:
        vision, tower = self.run.vision, self.meta_model.vision
        if vision.weights is not None:
            path = Path(vision.weights)
            if path.suffix != ".safetensors" or not path.is_file():
                raise ConfigError(
                    f"vision.weights: {vision.weights} is no safetensors file; nothing else is read"
                )
            own = PublishedFiles([path])
            # Shapes alone are enough to apply the run's rule about missing and unexpected names.
            tower.load_backbone(
                {key: torch.empty(shape, device="meta") for key, shape in own.shapes.items()}
            )
            return own.locate(wanted, [lambda name: name.removeprefix(BACKBONE)])
        if vision.library == "timm":
            return None
        files = self._find(vision.name, vision.revision)
        if files is None:
            return None
        declared = str((tower.config.hf_config or {}).get("dtype"))
        if "16" in declared and any(map(files.is_fp32, files.shapes)):
            # transformers 5 rounds to the declared type before the run casts to its precision.
            return None
        # In the files of an image-text pair or a classifier the names begin with the encoder's
        # name.
        prefixes = ["", "vision_model.", f"{getattr(tower.backbone, 'base_model_prefix', '')}."]
        return files.locate(wanted, [partial(_with_prefix, prefix) for prefix in prefixes])


def input_embedding(model: ParGoForConditionalGeneration) -> tuple[str, nn.Parameter]:
    """Return the exported name and the parameter of the LLM's word embeddings."""
    weight = model.get_input_embeddings().weight
    return next((exported_name(n), p) for n, p in model.named_parameters() if p is weight)


def is_drawn(run: RunConfig) -> bool:
    """Whether frozen weights are random numbers, which are found again only if the whole model is
    built in the same order.
    """
    if run.start_from is not None:
        return False
    random = ["projector"]
    if run.vision.weights == "random":
        random.append("vision")
    if run.llm.weights == "random":
        random.append("llm")
    return any(getattr(run.train, part).mode != "full" for part in random)


def _with_prefix(prefix: str, name: str) -> str:
    return prefix + name.removeprefix(BACKBONE)


def _held(values: torch.Tensor) -> Reader:
    return lambda: values


def _say_built(what: str) -> str:
    log.warning(
        "%s is not in safetensors files under the names of the model: built in memory, as the run did",
        what,
    )
    return what
