"""A training checkpoint as a source of weights: trained weights come from its files, and frozen
weights from the sources of the run.

The model is built on the meta device only. Frozen weights are compared with the hashes in the
manifest before any of them is used. LoRA is merged in fp32 when a weight is read, or kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.checkpoint.frozen import check_frozen
from pargo_ds.config import RunConfig
from pargo_ds.convert.weights import (
    LORA,
    Spec,
    WeightSource,
    check_names,
    exported_name,
    tied_names,
)
from pargo_ds.convert.zero.checkpoint_files import PIECE, CheckpointFiles, open_checkpoint
from pargo_ds.convert.zero.frozen_hashes import hash_frozen
from pargo_ds.convert.zero.frozen_parts import FrozenParts
from pargo_ds.convert.zero.lora_adapter import LoraAdapter
from pargo_ds.convert.zero.meta_model import build_meta_model, described_config
from pargo_ds.convert.zero.model_card import NOT_VERIFIED, model_card
from pargo_ds.errors import CheckpointError
from pargo_ds.model import ParGoProcessor
from pargo_ds.model.generation_settings import taken_over


class CheckpointWeights(WeightSource):
    """The weights of a checkpoint.

    Args:
        path: a folder as for open_checkpoint, or the result of that function.
        run: the run file; only for checkpoints of DeepSpeed alone, which do not contain it.
        lora: "merged": LoRA is added to the layers; "separate": `write_adapter` writes it.
        dtype: type of the exported weights (default: the run's precision).
        wait: wait until all files were compared with their hashes; otherwise the caller must call
            `files.check` before it publishes anything.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit the frozen weights of its run.
        ConfigError: the sources of the frozen weights are not available.
    """

    def __init__(
        self,
        path: Path | CheckpointFiles,
        run: RunConfig | None = None,
        lora: Literal["merged", "separate"] = "merged",
        dtype: torch.dtype | None = None,
        wait: bool = True,
    ) -> None:
        if not isinstance(path, CheckpointFiles):
            path = open_checkpoint(path, run)
        self.files = path
        self.where, self.run, self.manifest = self.files.where, self.files.run, self.files.manifest
        self.dtype = dtype or assembly.dtype_of(self.run)
        self._processor = assembly.build_processor(self.run)
        self.config = described_config(self.run, self.manifest, self._processor)
        self.model = build_meta_model(self.run, self.config)
        with torch.device("meta"):
            apply_freezing(self.model, self.run.train)
        values = self.model.state_dict()
        aliases = tied_names(self.model)
        own = [name for name in values if LORA not in name and name not in aliases]
        self._full = {exported_name(name): name for name in own}
        self._trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        self._check_names(values, aliases)
        if lost := sorted(self._trained - set(self.files.trained.names())):
            raise CheckpointError(
                f"{self.where}: its files lack {', '.join(lost[:12])} ({len(lost)} tensors)"
            )
        self.frozen = self._find_frozen(values)
        if self.frozen.output_std is not None:
            self.config.projector_config.output_std = self.frozen.output_std
        self.not_verified = self._verify()
        self.adapter: LoraAdapter | None = None
        self.lora: Literal["merged", "separate"] | None = None
        if self.run.train.llm.mode == "lora":
            self.adapter = LoraAdapter(self.model, self.files.read, self.dtype, self.where)
            self.lora = lora
        if self.lora == "merged":
            self._untie(aliases)
        self.specs = {}
        for name, full in self._full.items():
            held = values[full]
            self.specs[name] = Spec(tuple(held.shape), self._dtype(held))
        if wait:
            self.files.check()

    def _dtype(self, held: torch.Tensor) -> torch.dtype:
        """The type of an exported tensor. Buffers that training keeps in fp32 in every precision
        are exported in fp32.
        """
        if held.dtype == assembly.dtype_of(self.run):
            return self.dtype
        return held.dtype

    def _check_names(self, values: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
        """Check that the checkpoint holds only tensors of the model, and all trained ones."""
        others, shapes = self.files.others, self.files.shapes
        stored = {**others, **shapes}
        found = {n: tuple(shape) for n, shape in stored.items() if n not in aliases}
        optional = found.keys() & (others.keys() - self._trained)
        names = [name for name in self._trained | optional if name in values]
        wanted = {name: tuple(values[name].shape) for name in names}
        check_names(self.where, found, wanted)

    def _find_frozen(self, values: Mapping[str, torch.Tensor]) -> FrozenParts:
        """Find the frozen weights that the checkpoint does not hold."""
        held = self._trained | self.files.others.keys()
        absent = {name: full for name, full in self._full.items() if full not in held}
        wanted = {name: tuple(values[full].shape) for name, full in absent.items()}
        return FrozenParts(
            self.run, self.model, wanted, self._processor, measure_embedding=self.manifest is None
        )

    def _verify(self) -> str | None:
        """Compare the frozen weights with the hashes of the manifest. Return None, or the reason
        why they cannot be compared.
        """
        if self.manifest is None:
            reason = NOT_VERIFIED.format("a plain DeepSpeed checkpoint")
            if self.files.others.keys() - self._trained:
                reason += "; those that it holds were taken from it"
            return reason
        names = {full: name for name, full in self._full.items() if full not in self._trained}
        check_frozen(hash_frozen(self.frozen, names), self.manifest.frozen, str(self.where))
        return None

    def _untie(self, aliases: Mapping[str, str]) -> None:
        """Separate weights that are tied, if an adapter is merged into one of them: an adapter of
        the word embeddings does not change the output head, and an adapter of the head does not
        change the embeddings. Other ties do not occur, because freezing.add_lora refuses them.
        """
        assert self.adapter is not None
        for second, first in aliases.items():
            names = [exported_name(full) for full in (first, second)]
            if any(name.removesuffix(".weight") in self.adapter.layers for name in names):
                self._full[names[1]] = first
                for config in (self.config, self.config.text_config):
                    config.tie_word_embeddings = False

    def _values(self, name: str) -> torch.Tensor:
        """Return a tensor by its exported name, without its adapter: in fp32 if it trained, else in
        the run's precision.
        """
        full = self._full[name]
        first = exported_name(full)
        if full in self._trained:
            return self.files.read(full)
        if full in self.files.others:
            return self.frozen.cast(first, self.files.read(full))
        return self.frozen.read(first)

    def read(self, name: str) -> torch.Tensor:
        values = self._values(name)
        if self.adapter is not None and self.merges(name):
            values = self.adapter.merge(name.removesuffix(".weight"), values)
        return values.to(self.specs[name].dtype)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield the elements of a tensor in order, in its type. A layer with a merged adapter is
        yielded as one piece.
        """
        full = self._full[name]
        if self.merges(name) or (full not in self._trained and full in self.files.others):
            pieces = iter([self.read(name).reshape(-1)])
        elif full in self._trained:
            pieces = self.files.pieces(full)
        else:
            first = exported_name(full)
            stored = self.frozen.stored(first).reshape(-1).split(PIECE)
            pieces = (self.frozen.cast(first, piece) for piece in stored)
        return (piece.to(self.specs[name].dtype) for piece in pieces)

    def merges(self, name: str) -> bool:
        """Whether an adapter is merged into this weight."""
        layer, _, kind = name.rpartition(".")
        if self.adapter is None or self.lora != "merged":
            return False
        return kind == "weight" and layer in self.adapter.layers

    def write_adapter(self, folder: Path) -> None:
        """Write the LoRA adapter as a folder of peft, if it is kept apart."""
        if self.adapter is not None and self.lora == "separate":
            self.adapter.write(folder)

    def counts(self) -> dict[str, int]:
        """Return the numbers of trained and of frozen parameters, adapters included."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "trained": trained,
            "frozen": sum(p.numel() for p in self.model.parameters()) - trained,
        }

    def processor(self) -> ParGoProcessor:
        return self._processor

    def write_description(self, folder: Path) -> None:
        config, generation = self.config, taken_over(self.model.generation_config)
        config.architectures = [type(self.model).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        # An answer ends with the end-of-turn token of the prompt, which the file of the LLM may
        # lack.
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
            projector=config.projector_config.describe(config.vision_config.num_patches),
        )
        (folder / "README.md").write_text(card)
