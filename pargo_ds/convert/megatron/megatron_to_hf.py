"""A torch_dist checkpoint, ours or one that megatron-core saved after training the LLM -> the whole ParGo model.

Megatron-core saves the LLM only; vision tower, projector, configuration and tokenizer then come from the Hugging Face
folder that the LLM was converted from.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pargo_ds.checkpoint.manifest import CheckpointError, compare_files, hash_of
from pargo_ds.convert.hf_folder import HFFolder, copy_description, finish_folder, read_config
from pargo_ds.convert.megatron.hf_to_megatron import DESCRIPTION, MANIFEST, PREFIX
from pargo_ds.convert.megatron.layout import LAYERS, Entry, Layout
from pargo_ds.convert.megatron.torch_dist import TorchDistFolder
from pargo_ds.convert.megatron.torch_dist_metadata import METADATA
from pargo_ds.convert.weight_files import write_hf_weights
from pargo_ds.convert.weights import LLM, Spec, WeightSource, check_names, expected_shapes, total_bytes
from pargo_ds.convert.whole_output import check_free_to_write, whole_output
from pargo_ds.model import ParGoProcessor

TRACKER = "latest_checkpointed_iteration.txt"
IGNORED = ("optimizer.", "chained_", "rng_state", "rerun_state_machine", "iteration", "opt_param_", "common_state")
"""How keys begin that Megatron saves beside the model. `_extra_state` is ignored, too."""
PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Megatron-LM rounds the vocabulary up; rows after the last token are left out."""
HALVES = "_w", "_v"
"""Newer checkpoints may hold gate and up projection under two keys (`singleton_local_shards`)."""


class MegatronWeights(WeightSource):
    """A torch_dist checkpoint under Hugging Face names.

    Args:
        folder: the checkpoint, or Megatron-LM's folder of checkpoints (then the one that its tracker file names).
        base: Hugging Face folder of the model that the LLM came from; needed where the checkpoint is not ours.

    Raises:
        CheckpointError: it cannot be read, was altered, or tensors are missing, unexpected or misshapen.
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
        self.description = self.where / DESCRIPTION if base is None else base
        self.config = read_config(self.description)
        self.layout = Layout.of(self.config.text_config)
        self.files = TorchDistFolder(self.where)
        self.stacked = not any(key.startswith(f"{LAYERS}.0.") for key in self.files.tensors)
        self._parts: tuple[Entry, tuple[torch.Tensor, ...]] | None = None
        expected = expected_shapes(self.config)
        self.base = self._base_of_the_rest(base)
        self._places = {LLM + part: (e, i) for e in self.layout.entries() for i, part in enumerate(e.parts)}
        self._check_keys(expected)
        self.specs = {name: Spec(shape, self._dtype(name)) for name, shape in self._in_order(expected).items()}

    def _base_of_the_rest(self, base: Path | None) -> HFFolder | None:
        """The folder that vision tower and projector are read from, where the checkpoint has neither."""
        if base is None or any(key.startswith(PREFIX) for key in self.files.tensors):
            return None
        return HFFolder(base)

    def _in_order(self, expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Queries, keys and values of a layer one after the other, so that what holds them is read once."""
        return {name: expected[name] for name in [*self._places, *(n for n in expected if n not in self._places)]}

    def _check_keys(self, expected: dict[str, tuple[int, ...]]) -> None:
        found = {k: t.shape for k, t in self.files.tensors.items() if not k.startswith(IGNORED)}
        wanted = {} if self.base else {PREFIX + n: s for n, s in expected.items() if not n.startswith(LLM)}
        if unplaced := [n for n in expected if n.startswith(LLM) and n not in self._places]:
            raise CheckpointError(f"{self.description}: {', '.join(unplaced)} have no place in a GPTModel")
        for entry in self.layout.entries():
            whole = self.layout.join(entry, [torch.empty(expected[LLM + p], device="meta") for p in entry.parts])
            stacks = (self.layout.layers,) if self.stacked and entry.layer is not None else ()
            for key, shape in zip(self._keys(entry), [whole] if self._is_whole(entry) else whole.chunk(2), strict=True):
                wanted[key] = (*stacks, *shape.shape)
        for key in PADDED:
            if key in wanted and key in found and found[key][0] > wanted[key][0]:
                found[key] = (wanted[key][0], *found[key][1:])
        strange = {o for o in self.files.objects if "_extra_state" not in o and not o.startswith(IGNORED)}
        check_names(self.where, found | dict.fromkeys(strange, ()), wanted)

    def _is_whole(self, entry: Entry) -> bool:
        key = entry.key(self.stacked)
        return key in self.files.tensors or key + HALVES[0] not in self.files.tensors

    def _keys(self, entry: Entry) -> list[str]:
        key = entry.key(self.stacked)
        return [key] if self._is_whole(entry) else [key + half for half in HALVES]

    def _dtype(self, name: str) -> torch.dtype:
        if name in self._places:
            return self.files.tensors[self._keys(self._places[name][0])[0]].dtype
        return self.base.specs[name].dtype if self.base else self.files.tensors[PREFIX + name].dtype

    def read(self, name: str) -> torch.Tensor:
        if name not in self._places:
            return self.base.read(name) if self.base else self.files.read(PREFIX + name)
        entry, place = self._places[name]
        if self._parts is None or self._parts[0] != entry:
            self._parts = None
            layer = entry.layer if self.stacked else None
            halves = [self.files.read(key, layer) for key in self._keys(entry)]
            self._parts = entry, self.layout.split(entry, torch.cat(halves) if len(halves) > 1 else halves[0])
        tensor = self._parts[1][place]
        return tensor[: self.config.text_config.vocab_size] if entry.name in PADDED else tensor

    def processor(self) -> ParGoProcessor:
        return ParGoProcessor.from_pretrained(self.description)

    def write_description(self, folder: Path) -> None:
        copy_description(self.description, folder)


def find_iteration(folder: Path) -> Path:
    """The checkpoint that Megatron-LM's tracker file in `folder` names, or `folder` itself."""
    tracker = folder / TRACKER
    if (folder / METADATA).is_file() or not tracker.is_file():
        return folder
    named = tracker.read_text().strip()
    if named != "release" and not named.isdigit():
        raise CheckpointError(f"{tracker} says {named!r}; expected a number or 'release'")
    return folder / ("release" if named == "release" else f"iter_{int(named):07d}")


def verify_manifest(folder: Path) -> None:
    """Compare every file of a checkpoint of ours with its manifest.

    Raises CheckpointError naming what is missing, cut or altered.
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


def megatron_to_hf(folder: Path, out: Path, *, base: Path | None = None, force: bool = False) -> int:
    """Write a Hugging Face folder; returns the number of tensors.

    Raises CheckpointError when the checkpoint does not hold the model, or `out` exists; `out` is whole or absent.
    """
    sources = [folder, *([base] if base else [])]
    check_free_to_write(out.absolute(), force=force, sources=sources)
    source = MegatronWeights(folder, base)
    with whole_output(out, force=force, needed=total_bytes(source.specs.values()), sources=sources) as aside:
        source.write_description(aside)
        hashes = write_hf_weights(source, aside)
        finish_folder(aside, hashes)
    return len(source.specs)
