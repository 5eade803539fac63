"""Read a plain DeepSpeed checkpoint of ZeRO 0 to 3 and any number of ranks as whole tensors, one at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pargo_ds.checkpoint.fragments import WEIGHT
from pargo_ds.convert.deepspeed.folder import (
    RANK_MODEL,
    RANK_OPTIMIZER,
    WHOLE_MODEL,
    agreed_stage,
    check_count,
    check_same,
    find_tag_folder,
    rank_files,
    refuse_foreign,
)
from pargo_ds.convert.deepspeed.layouts import (
    Assembled,
    as_saved,
    check_addresses,
    in_one_row,
    partitioned,
    rank_by_rank,
    tied_names,
)
from pargo_ds.convert.deepspeed.pickles import SavedTensor, StatesFile
from pargo_ds.convert.weights import Spec
from pargo_ds.errors import CheckpointError

WANTED = "a checkpoint as DeepSpeed's engine.save_checkpoint writes it"
ENTRIES = ("module", "buffer_names", "param_shapes", "dp_world_size", "global_steps")
"""What is read from the file of a model."""


@dataclass(frozen=True)
class _Tensors:
    trained: dict[str, Assembled]
    others: dict[str, Assembled]
    shared: dict[str, str]


class DeepSpeedFiles:
    """The files that `engine.save_checkpoint(folder, tag)` of DeepSpeed 0.19.8 wrote, in bf16, fp16
    or fp32, with data parallelism only.

    Neither DeepSpeed nor the code that trained is needed, and no code in the files is run. The
    files are mapped into memory: only requested tensors are copied, and the states of the optimizer
    are not read.

    Args:
        folder: the folder that was given to save_checkpoint, or the folder of one of its tags.
        tag: name of the tag (default: the tag that `folder`/latest names).

    Raises:
        CheckpointError: a file is missing, cut, altered or of another save; the pieces do not fit
            the shapes; or the model was divided by other means than ZeRO (tensor or pipeline
            parallelism, experts, a universal checkpoint).
    """

    where: Path
    """The folder of the tag."""
    shapes: dict[str, list[int]]
    """Shapes of the trained parameters in the order of training. The files of ZeRO 0 do not say
    which parameters trained, so there it has all parameters.
    """
    other_tensors: dict[str, Spec]
    """Frozen parameters and persistent buffers that the checkpoint holds."""
    shared: dict[str, str]
    """For other names of tied weights, the name under which the weight is stored, as far as
    DeepSpeed noticed the tie. With ZeRO 3 it does not notice modules that are registered twice.
    """
    zero_stage: int
    world_size: int
    """Data parallel ranks that wrote it."""
    step: int
    """Optimizer steps of the engine (`global_steps`)."""
    config: dict[str, Any]
    """The engine's configuration, if it was given as a mapping."""
    knows_trained: bool
    """False for ZeRO 0, where `shapes` also has the frozen parameters."""

    def __init__(self, folder: Path, tag: str | None = None) -> None:
        self.where = find_tag_folder(Path(folder), tag)
        refuse_foreign(self.where)
        self._models = self._open_models()
        self._model = self._models[0].content
        self._optimizers = [StatesFile(path) for path in rank_files(self.where, RANK_OPTIMIZER)]
        try:
            self._read_facts()
            tensors = self._lay_out()
        except CheckpointError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{self.where} is not {WANTED} ({type(error).__name__}: {error})"
            ) from error
        self._trained, self._others, self.shared = tensors.trained, tensors.others, tensors.shared
        self.shapes = {name: list(tensor.shape) for name, tensor in self._trained.items()}
        self.other_tensors = {n: Spec(t.shape, t.dtype) for n, t in self._others.items()}

    def names(self) -> list[str]:
        """Return the names of the trained parameters in alphabetic order; tied weights have one
        name.
        """
        return sorted(self.shapes)

    def whole(self, kind: str, name: str) -> torch.Tensor:
        """Return a copy of one trained parameter in its shape and in fp32; `kind` is
        fragments.WEIGHT.

        Raises CheckpointError when there is no such parameter, or when a file with a part of it was
        altered.
        """
        return self._trained_one(kind, name).read().float()

    def pieces(self, kind: str, name: str, size: int) -> Iterator[torch.Tensor]:
        """Yield the elements of a trained parameter in order, in fp32, at most `size` at a time.
        They must not be changed. Raises CheckpointError as `whole`.
        """
        for piece in self._trained_one(kind, name).pieces(size):
            yield piece.float()

    def read_other(self, name: str) -> torch.Tensor:
        """Return one frozen parameter or buffer in its shape and its stored precision.

        Raises CheckpointError as `whole`.
        """
        return self._found(self._others, name, "frozen parameter or buffer").read()

    def _trained_one(self, kind: str, name: str) -> Assembled:
        if kind != WEIGHT:
            raise CheckpointError(
                f"{self.where}: {kind} of {name} is not read, only the weights are"
            )
        return self._found(self._trained, name, "trained parameter")

    def _found(self, among: dict[str, Assembled], name: str, what: str) -> Assembled:
        if name in among:
            return among[name]
        fault = f"{self.where}: there is no {what} {name}"
        if name in self.shared:
            fault += f"; it is tied to {self.shared[name]}"
        raise CheckpointError(fault)

    def _open_models(self) -> list[StatesFile]:
        of_ranks, whole = rank_files(self.where, RANK_MODEL), self.where / WHOLE_MODEL
        if of_ranks and whole.exists():
            raise CheckpointError(
                f"{self.where}: two saves are mixed, {whole.name} and {of_ranks[0].name}"
            )
        if not of_ranks and not whole.exists():
            raise CheckpointError(
                f"{self.where}: {WHOLE_MODEL} (or, of ZeRO 3, one for every rank) is missing"
            )
        files = [StatesFile(path) for path in of_ranks or [whole]]
        for file in files:
            _check_entries(file)
        return files

    def _read_facts(self) -> None:
        """Read the ZeRO stage, the number of ranks and the step, and check that all files agree."""
        model, models = self._model, self._models
        if model.get("mp_world_size", 1) != 1:
            raise CheckpointError(
                f"{models[0].path}: its tensors are split by tensor parallelism, which is not read"
            )
        if model.get("ds_autoep_layers") or model.get("autoep_layers"):
            raise CheckpointError(
                f"{models[0].path}: it has experts (AutoEP), which are divided among ranks of their own"
            )
        for key in (
            "global_steps",
            "dp_world_size",
            "ds_version",
            "param_shapes",
            "frozen_param_shapes",
        ):
            check_same(models, key, [file.content.get(key) for file in models])
        config = model.get("ds_config")
        self.config = {}
        if isinstance(config, dict):
            self.config = config
        self.step, self.world_size = int(model["global_steps"]), int(model["dp_world_size"])
        self.knows_trained = model["param_shapes"] is not None
        self.zero_stage = 0
        if self.knows_trained:
            self.zero_stage = agreed_stage(self.where, models[0], self._optimizers, self.world_size)
        if self.zero_stage == 3:
            check_count(models, self.world_size, self.where, "model")
        optimizers = self.world_size if self.zero_stage else 0
        check_count(self._optimizers, optimizers, self.where, "optimizer")

    def _lay_out(self) -> _Tensors:
        module = self._model["module"].items()
        tensors = {name: value for name, value in module if isinstance(value, torch.Tensor)}
        saved = {name: SavedTensor(self._models[0], tensor) for name, tensor in tensors.items()}
        buffer_names = [name for name in self._model["buffer_names"] if name in saved]
        buffers = {name: as_saved(saved[name]) for name in buffer_names}
        if self.zero_stage == 0:
            parameters = {name: tensor for name, tensor in saved.items() if name not in buffers}
            shared = tied_names(parameters, {})
            trained = {n: as_saved(t) for n, t in parameters.items() if n not in shared}
            return _Tensors(trained, buffers, shared)
        shared = dict(self._model["shared_params"])
        trained = self._trained_of_ranks()
        if self.zero_stage == 3:
            return _Tensors(trained, self._frozen_of_ranks() | buffers, shared)
        self._check_module(trained, saved)
        if not self.config.get("zero_optimization", {}).get("round_robin_gradients"):
            # In this case DeepSpeed 0.19.8 notes addresses for another order than that of the data.
            check_addresses(self._optimizers, trained)
        shared = tied_names(saved, shared, first=list(trained))
        others = {}
        for name, tensor in saved.items():
            if name not in trained and name not in shared:
                others[name] = as_saved(tensor)
        return _Tensors(trained, others, shared)

    def _trained_of_ranks(self) -> dict[str, Assembled]:
        key = "fp32_flat_groups" if self.zero_stage == 3 else "single_partition_of_fp32_groups"
        groups = self._model["param_shapes"]
        flats = [self._flat_groups(file, key, len(groups)) for file in self._optimizers]
        trained: dict[str, Assembled] = {}
        for number, group in enumerate(groups):
            pieces = [of_rank[number] for of_rank in flats]
            if self.zero_stage == 3:
                trained |= rank_by_rank(group, pieces)
            else:
                trained |= in_one_row(group, pieces, self._paddings(number, len(group)))
        return trained

    def _paddings(self, group: int, parameters: int) -> list[int]:
        """Unused elements behind each parameter of a group; 0 where the files do not say it."""
        states = self._optimizers[0].content["optimizer_state_dict"]
        paddings = states.get("param_alignment_paddings")
        if not paddings:
            return [0] * parameters
        return paddings[group]

    def _flat_groups(self, file: StatesFile, key: str, count: int) -> list[SavedTensor]:
        flats = file.content["optimizer_state_dict"][key]
        if len(flats) != count or not all(isinstance(flat, torch.Tensor) for flat in flats):
            raise CheckpointError(
                f"{file.path}: {len(flats)} groups of weights, {count} in {self._models[0].path.name}; "
                "two saves are mixed"
            )
        return [SavedTensor(file, flat) for flat in flats]

    def _frozen_of_ranks(self) -> dict[str, Assembled]:
        if not (shapes := self._model.get("frozen_param_shapes")):
            return {}
        quantized = self.config.get("zero_optimization", {}).get(
            "zero_quantized_nontrainable_weights"
        )
        if quantized:
            raise CheckpointError(
                f"{self.where}: its frozen weights are quantized (zero_quantized_nontrainable_weights)"
            )
        frozen = {}
        for name, shape in shapes.items():
            pieces = []
            for file in self._models:
                pieces.append(SavedTensor(file, file.content["frozen_param_fragments"][name]))
            frozen[name] = partitioned(name, shape, pieces)
        return frozen

    def _check_module(self, trained: dict[str, Assembled], saved: dict[str, SavedTensor]) -> None:
        """Raise CheckpointError when the model file has a trained parameter in another shape than
        the files of the ranks.
        """
        for name, tensor in trained.items():
            if name in saved and saved[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{self._models[0].path}: {name} is {list(saved[name].shape)} among the model's tensors, "
                    f"{list(tensor.shape)} in param_shapes; the file was altered"
                )


def _check_entries(file: StatesFile) -> None:
    """Raise CheckpointError unless the file of a model has what is read from it."""
    lacking = list(ENTRIES)
    if isinstance(file.content, dict):
        lacking = [key for key in ENTRIES if key not in file.content]
    if lacking:
        raise CheckpointError(f"{file.path} lacks {lacking}: it is not of {WANTED}")
    if not isinstance(file.content["module"], dict):
        raise CheckpointError(
            f"{file.path}: the model is not in it (a pipeline of layers saves it elsewhere)"
        )
