"""A training checkpoint (any ZeRO stage and number of ranks, ours or DeepSpeed's own) -> a Hugging Face folder.

Tensor by tensor: trained ones from the checkpoint, frozen ones from where the run got them. LoRA stays beside the model
as a peft adapter folder (`adapter/`), or is merged into the LLM.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.config import RunConfig
from pargo_ds.convert.weight_files import FILE_BYTES
from pargo_ds.convert.whole_output import check_free_to_write, whole_output
from pargo_ds.convert.zero.checkpoint_files import open_checkpoint
from pargo_ds.convert.zero.early_weights import write_weights

if TYPE_CHECKING:  # importing the model takes seconds, in which weights are written already
    from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights

log = logging.getLogger("pargo_ds")
ADAPTER = "adapter"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def convert(
    checkpoint: Path,
    out: Path,
    *,
    merge_lora: bool = False,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
    run: RunConfig | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write `out`; returns counts {"trained": ..., "frozen": ...} of parameters. Memory: about the largest tensor.

    Args:
        checkpoint: a step folder, a run's folder or its checkpoints/ (then the newest one), or DeepSpeed's own.
        dtype: of the weights; the run's precision when None. fp32 keeps what trained exactly.
        file_bytes: a new safetensors file begins after so many.
        run: the run file, for DeepSpeed's own checkpoints.

    Raises:
        CheckpointError, ConfigError: naming what does not fit; `out` exists, or the disk is too full. `out` is whole
            or absent.
    """
    check_free_to_write(out.absolute(), force=force, sources=[checkpoint])
    files = open_checkpoint(checkpoint, run)
    dtype = dtype or DTYPES[files.run.train.precision]

    def build() -> CheckpointWeights:
        from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights

        source = CheckpointWeights(files, lora="merged" if merge_lora else "apart", dtype=dtype, wait=False)
        check_free_to_write(out.absolute(), force=force, sources=source.frozen.folders)
        return source

    with whole_output(out, force=force, sources=[files.where]) as aside:
        try:
            source, hashes = write_weights(files, dtype, build, aside, file_bytes)
        except CheckpointError:
            files.check()  # that a file was altered says more than what is odd in it
            raise
        if source.not_verified is not None:
            log.warning("%s: %s", source.where, source.not_verified)
        from pargo_ds.convert.hf_folder import finish_folder

        source.write_adapter(aside / ADAPTER)
        source.write_description(aside)
        finish_folder(aside, hashes)
        source.files.check()
    return source.counts()
