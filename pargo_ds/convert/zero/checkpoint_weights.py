"""A training checkpoint as a source of weights: its own files for what trained, the run's sources for what did not.

The model is built on the meta device only. Frozen weights are checked against the hashes in the manifest before any
value leaves; LoRA is merged on the way, in fp32, or left apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pargo_ds.checkpoint.frozen import check_frozen
from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.config import RunConfig
from pargo_ds.convert.weights import BASE_LAYER, LORA, Spec, WeightSource, check_names, tied_names
from pargo_ds.convert.zero.checkpoint_files import PIECE, CheckpointFiles, open_checkpoint
from pargo_ds.convert.zero.frozen_hashes import hash_frozen
from pargo_ds.convert.zero.frozen_parts import FrozenParts, input_embedding, spread
from pargo_ds.convert.zero.lora_adapter import LoraAdapter
from pargo_ds.convert.zero.model_card import NOT_VERIFIED, model_card
from pargo_ds.convert.zero.skeleton import build_skeleton
from pargo_ds.model import ParGoProcessor
from pargo_ds.model.generation_settings import taken_over
from pargo_ds.training import assembly
from pargo_ds.training.freezing import apply_freezing

LAST_DIGITS = 64
"""The embedding's deviation may differ by so many of fp32's smallest steps between a GPU, a CPU and pieces of it."""


class CheckpointWeights(WeightSource):
    """A checkpoint: a step folder, a run's folder, or DeepSpeed's own.

    Args:
        path: the folder, or what open_checkpoint says of it.
        run: the run file that it belongs to; only for DeepSpeed's own checkpoints, which do not hold it.
        lora: "merged" into the layers, or "apart": `write_adapter` writes it.
        dtype: of all weights in the run's precision; that precision when None. What trained is held in fp32.
        wait: until all files were compared with their hashes; else the caller calls `files.check` before it publishes
            anything.

    Raises:
        CheckpointError: it is damaged, or does not fit the frozen parts that it names.
        ConfigError: these parts cannot be had.
    """

    def __init__(
        self,
        path: Path | CheckpointFiles,
        run: RunConfig | None = None,
        lora: Literal["merged", "apart"] = "merged",
        dtype: torch.dtype | None = None,
        wait: bool = True,
    ) -> None:
        self.files = path if isinstance(path, CheckpointFiles) else open_checkpoint(path, run)
        self.where, self.run, self.manifest = self.files.where, self.files.run, self.files.manifest
        self.dtype = assembly.dtype_of(self.run) if dtype is None else dtype
        self._processor = assembly.build_processor(self.run)
        self.model = build_skeleton(self.run, self._processor)
        with torch.device("meta"):
            apply_freezing(self.model, self.run.train)
        self.config = self.model.config
        values = self.model.state_dict()
        aliases = tied_names(self.model)
        self._full = {n.replace(BASE_LAYER, ""): n for n in values if LORA not in n and n not in aliases}
        self._trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        self._check_names(values, aliases)
        if lost := sorted(self._trained - set(self.files.trained.names())):
            raise CheckpointError(f"{self.where}: its files lack {', '.join(lost[:12])} ({len(lost)} tensors)")
        self.frozen = self._find_frozen(values)
        self._measure_embedding()
        self.not_verified = self._verify()
        has_lora = self.run.train.llm.mode == "lora"
        self.adapter = LoraAdapter(self.model, self.files.read, self.dtype, self.where) if has_lora else None
        self.lora = lora if has_lora else None
        if self.lora == "merged":
            self._untie(aliases)
        self.specs = {
            name: Spec(tuple(values[full].shape), self._dtype(values[full])) for name, full in self._full.items()
        }
        if wait:
            self.files.check()

    def _dtype(self, held: torch.Tensor) -> torch.dtype:
        """Of an exported tensor: buffers that training keeps in fp32 whatever its precision stay so."""
        return self.dtype if held.dtype == assembly.dtype_of(self.run) else held.dtype

    def _check_names(self, values: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
        """What the checkpoint holds must be parts of the model, and all that trained must be there."""
        others, shapes = self.files.others, self.files.shapes
        found = {name: tuple(shape) for name, shape in {**others, **shapes}.items() if name not in aliases}
        optional = found.keys() & (others.keys() - self._trained)
        wanted = {name: tuple(values[name].shape) for name in self._trained | optional if name in values}
        check_names(self.where, found, wanted)

    def _find_frozen(self, values: Mapping[str, torch.Tensor]) -> FrozenParts:
        """Where the weights lie that neither trained nor lie in the checkpoint."""
        held = self._trained | self.files.others.keys()
        wanted = {name: tuple(values[full].shape) for name, full in self._full.items() if full not in held}
        # An embedding that trained tells no longer what its deviation was when it was measured.
        moved = self.config.projector_config.soft_prompt and input_embedding(self.model)[0] in self._trained
        measured = self.manifest is not None or moved
        return FrozenParts(self.run, self.model, wanted, self._processor, measure_embedding=measured)

    def _measure_embedding(self) -> None:
        """The deviation that visual tokens start at, and the fixed factor of a soft prompt's output."""
        if self.run.start_from is not None:
            return
        std = self.frozen.output_std
        if std is None:
            name, _ = input_embedding(self.model)
            std = spread(self._values(name), self.dtype)
        self.config.projector_config.output_std = std

    def _verify(self) -> str | None:
        """Why frozen weights could not be compared with hashes; None when they were, and are the same."""
        if self.manifest is None:
            held = self.files.others.keys() - self._trained
            where = "; those that it holds were taken from it" if held else ""
            return NOT_VERIFIED.format("a plain DeepSpeed checkpoint") + where
        self._check_fingerprint(self.manifest.model_fingerprint)
        if self.manifest.format_version == 1:
            return NOT_VERIFIED.format("a checkpoint of format 1")
        names = {full: name for name, full in self._full.items() if full not in self._trained}
        check_frozen(hash_frozen(self.frozen, names), self.manifest.frozen, str(self.where))
        return None

    def _check_fingerprint(self, wanted: str) -> None:
        projector = self.config.projector_config
        for std in [projector.output_std] if self.run.start_from else neighbours(projector.output_std):
            projector.output_std = std
            if assembly.model_fingerprint(self.model) == wanted:
                return
        raise CheckpointError(
            f"the frozen parts named in {self.where} now describe another model: "
            f"{assembly.frozen_sources(self.run)}; put back what the run was trained with"
        )

    def _untie(self, aliases: Mapping[str, str]) -> None:
        """One weight under two names becomes two when an adapter is merged into it under one of them: an adapter of the
        word embeddings leaves the head as it is, and the other way round. Nothing else of a model is tied so, or
        training would not have begun (freezing.add_lora)."""
        for second, first in aliases.items():
            names = [full.replace(BASE_LAYER, "") for full in (first, second)]
            if any(name.removesuffix(".weight") in self.adapter.layers for name in names):
                self._full[names[1]] = first
                self.config.tie_word_embeddings = self.config.text_config.tie_word_embeddings = False

    def _values(self, name: str) -> torch.Tensor:
        """By its exported name, without its adapter: fp32 where it trained, else in the run's precision."""
        full = self._full[name]
        first = full.replace(BASE_LAYER, "")
        if full in self._trained:
            return self.files.read(full)
        if full in self.files.others:
            return self.frozen.cast(first, self.files.read(full))
        return self.frozen.read(first)

    def read(self, name: str) -> torch.Tensor:
        values = self._values(name)
        if self.merges(name):
            values = self.adapter.merge(name.removesuffix(".weight"), values)
        return values.to(self.specs[name].dtype)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The elements of one tensor in order, in its type; merged layers come whole."""
        full = self._full[name]
        if self.merges(name) or (full not in self._trained and full in self.files.others):
            pieces = iter([self.read(name).reshape(-1)])
        elif full in self._trained:
            pieces = self.files.pieces(full)
        else:
            first = full.replace(BASE_LAYER, "")
            pieces = (self.frozen.cast(first, p) for p in self.frozen.stored(first).reshape(-1).split(PIECE))
        return (piece.to(self.specs[name].dtype) for piece in pieces)

    def merges(self, name: str) -> bool:
        """Whether an adapter is added to this weight."""
        layer, _, kind = name.rpartition(".")
        return self.lora == "merged" and kind == "weight" and layer in self.adapter.layers

    def write_adapter(self, folder: Path) -> None:
        """The LoRA adapter as peft's folder, where it is kept apart."""
        if self.lora == "apart":
            self.adapter.write(folder)

    def counts(self) -> dict[str, int]:
        """Parameters that trained, and all others, adapters included."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"trained": trained, "frozen": sum(p.numel() for p in self.model.parameters()) - trained}

    def processor(self) -> ParGoProcessor:
        return self._processor

    def write_description(self, folder: Path) -> None:
        config, generation = self.model.config, taken_over(self.model.generation_config)
        config.architectures = [type(self.model).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        # Answers end with the prompt's end-of-turn token, whatever the LLM's own file says.
        generation.eos_token_id = self._processor.stop_token_ids
        generation.pad_token_id = self._processor.tokenizer.pad_token_id
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        generation.save_pretrained(folder)
        self._processor.save_pretrained(folder)
        hashes = self.manifest.frozen if self.manifest else {}
        card = model_card(
            self.run,
            manifest=self.manifest,
            step=self.files.step,
            frozen={n: hashes.get(n) for n in self._full.values() if n not in self._trained},
            dtype=config.dtype,
            lora=self.lora,
            not_verified=self.not_verified,
        )
        (folder / "README.md").write_text(card)


def neighbours(value: float) -> Iterator[float]:
    """fp32 numbers around `value`, nearest first."""
    below = above = np.float32(value)
    yield float(value)
    for _ in range(LAST_DIGITS):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        yield from (float(below), float(above))
