"""Read the whole ParGo model from a torch_dist checkpoint, which this project wrote or
megatron-core saved after it trained the LLM.

Megatron-core saves only the LLM. Vision tower, projector, configuration and tokenizer then come
from the Hugging Face folder from which the LLM was converted.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pargo_ds.checkpoint.manifest import compare_files, hash_of
from pargo_ds.convert.hf_folder import HFFolder, copy_description, finish_folder, read_config
from pargo_ds.convert.megatron.hf_to_megatron import DESCRIPTION, MANIFEST, PREFIX
from pargo_ds.convert.megatron.layout import LAYERS, Entry, Layout
from pargo_ds.convert.megatron.torch_dist import TorchDistFolder
from pargo_ds.convert.megatron.torch_dist_metadata import METADATA
from pargo_ds.convert.weight_files import write_hf_weights
from pargo_ds.convert.weights import (
    LLM,
    Spec,
    WeightSource,
    check_names,
    expected_shapes,
    total_bytes,
)
from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_output import check_free_to_write, whole_output
from pargo_ds.model import ParGoProcessor

TRACKER = "latest_checkpointed_iteration.txt"
IGNORED = (
    "optimizer.",
    "chained_",
    "rng_state",
    "rerun_state_machine",
    "iteration",
    "opt_param_",
    "common_state",
)
"""Prefixes of keys that Megatron saves beside the model; they are ignored, like `_extra_state`."""
PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Tensors to which Megatron-LM adds rows, because it rounds the vocabulary up. These rows are left
out.
"""
HALVES = "_w", "_v"
"""Endings of the two keys under which newer checkpoints may have gate and up projection
(`singleton_local_shards`).
"""


class MegatronWeights(WeightSource):
    """A torch_dist checkpoint under Hugging Face names.

    Args:
        folder: the checkpoint, or Megatron-LM's folder of checkpoints, of which the tracker file
            names one.
        base: Hugging Face folder of the model from which the LLM was converted; required for a
            checkpoint that this project did not write.

    Raises:
        CheckpointError: the checkpoint cannot be read or was altered, or tensors are missing,
            unexpected or have another shape.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self.where = find_iteration(folder)
        ours = (self.where / MANIFEST).is_file()
        if ours:
            verify_manifest(self.where)
        elif base is None:
            raise CheckpointError(
                f"{self.where} was not written by hf-to-megatron (no {MANIFEST}); name the Hugging Face folder of the "
                "model that its LLM came from with --base"
            )
        self.description = base or self.where / DESCRIPTION
        self.config = read_config(self.description)
        self.layout = Layout.of(self.config.text_config)
        self.files = TorchDistFolder(self.where)
        self.stacked = not any(key.startswith(f"{LAYERS}.0.") for key in self.files.tensors)
        self._parts: tuple[Entry, tuple[torch.Tensor, ...]] | None = None
        expected = expected_shapes(self.config)
        self.base = self._base_of_the_rest(base)
        self._places: dict[str, tuple[Entry, int]] = {}
        for entry in self.layout.entries():
            for number, part in enumerate(entry.parts):
                self._places[LLM + part] = (entry, number)
        self._check_keys(expected)
        shapes = self._in_order(expected)
        self.specs = {name: Spec(shape, self._dtype(name)) for name, shape in shapes.items()}

    def _base_of_the_rest(self, base: Path | None) -> HFFolder | None:
        """Return the folder with vision tower and projector, if the checkpoint has only the LLM."""
        if base is None or any(key.startswith(PREFIX) for key in self.files.tensors):
            return None
        return HFFolder(base)

    def _in_order(self, expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Sort the tensors so that query, key and value of a layer follow each other, because one
        stored tensor holds all three and should be read once.
        """
        others = [name for name in expected if name not in self._places]
        return {name: expected[name] for name in [*self._places, *others]}

    def _check_keys(self, expected: dict[str, tuple[int, ...]]) -> None:
        found = {k: t.shape for k, t in self.files.tensors.items() if not k.startswith(IGNORED)}
        wanted: dict[str, tuple[int, ...]] = {}
        if not self.base:
            wanted = {PREFIX + n: s for n, s in expected.items() if not n.startswith(LLM)}
        if unplaced := [n for n in expected if n.startswith(LLM) and n not in self._places]:
            raise CheckpointError(
                f"{self.description}: {', '.join(unplaced)} have no place in a GPTModel"
            )
        for entry in self.layout.entries():
            parts = [torch.empty(expected[LLM + part], device="meta") for part in entry.parts]
            stored: tuple[torch.Tensor, ...] = (self.layout.join(entry, parts),)
            if not self._is_whole(entry):
                stored = stored[0].chunk(2)
            stacks = (self.layout.layers,) if self.stacked and entry.layer is not None else ()
            for key, tensor in zip(self._keys(entry), stored, strict=True):
                wanted[key] = (*stacks, *tensor.shape)
        for key in PADDED:
            if key in wanted and key in found and found[key][0] > wanted[key][0]:
                found[key] = (wanted[key][0], *found[key][1:])
        objects = [key for key in self.files.objects if "_extra_state" not in key]
        strange = [key for key in objects if not key.startswith(IGNORED)]
        check_names(self.where, found | dict.fromkeys(strange, ()), wanted)

    def _is_whole(self, entry: Entry) -> bool:
        key = entry.key(self.stacked)
        return key in self.files.tensors or key + HALVES[0] not in self.files.tensors

    def _keys(self, entry: Entry) -> list[str]:
        key = entry.key(self.stacked)
        if self._is_whole(entry):
            return [key]
        return [key + half for half in HALVES]

    def _dtype(self, name: str) -> torch.dtype:
        if name in self._places:
            return self.files.tensors[self._keys(self._places[name][0])[0]].dtype
        if self.base:
            return self.base.specs[name].dtype
        return self.files.tensors[PREFIX + name].dtype

    def read(self, name: str) -> torch.Tensor:
        if name not in self._places:
            if self.base:
                return self.base.read(name)
            return self.files.read(PREFIX + name)
        entry, place = self._places[name]
        if self._parts is None or self._parts[0] != entry:
            self._parts = None
            layer = entry.layer if self.stacked else None
            halves = [self.files.read(key, layer) for key in self._keys(entry)]
            whole = halves[0]
            if len(halves) > 1:
                whole = torch.cat(halves)
            self._parts = entry, self.layout.split(entry, whole)
        tensor = self._parts[1][place]
        if entry.name in PADDED:
            return tensor[: self.config.text_config.vocab_size]
        return tensor

    def processor(self) -> ParGoProcessor:
        return ParGoProcessor.from_pretrained(self.description)

    def write_description(self, folder: Path) -> None:
        copy_description(self.description, folder)


def find_iteration(folder: Path) -> Path:
    """Return the checkpoint that Megatron-LM's tracker file in `folder` names, or `folder`
    itself.
    """
    tracker = folder / TRACKER
    if (folder / METADATA).is_file() or not tracker.is_file():
        return folder
    named = tracker.read_text().strip()
    if named != "release" and not named.isdigit():
        raise CheckpointError(f"{tracker} says {named!r}; expected a number or 'release'")
    if named == "release":
        return folder / named
    return folder / f"iter_{int(named):07d}"


def verify_manifest(folder: Path) -> None:
    """Compare every file of a checkpoint that this project wrote with its manifest.

    Raises CheckpointError naming the files that are missing, cut or altered.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text())
        if body.pop("hash") != hash_of(body):
            raise ValueError("its own hash does not fit what it says")
        files = dict(body["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} was altered: {error}") from error
    compare_files(folder, files)


def megatron_to_hf(
    folder: Path, out: Path, *, base: Path | None = None, force: bool = False
) -> int:
    """Write the Hugging Face folder `out`, which is whole or absent. Return the number of tensors.

    Raises CheckpointError when the checkpoint does not hold the model, or when `out` exists.
    """
    sources = [folder]
    if base:
        sources.append(base)
    check_free_to_write(out.absolute(), force=force, sources=sources)
    source = MegatronWeights(folder, base)
    with whole_output(
        out, force=force, needed=total_bytes(source.specs.values()), sources=sources
    ) as aside:
        source.write_description(aside)
        hashes = write_hf_weights(source, aside)
        finish_folder(aside, hashes)
    return len(source.specs)
