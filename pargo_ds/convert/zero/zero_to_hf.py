"""Convert a training checkpoint of any ZeRO stage and number of ranks, ours or one of DeepSpeed
alone, to a Hugging Face folder.

Tensors are written one by one: trained tensors come from the checkpoint, frozen tensors from the
sources of the run. LoRA is written beside the model as a folder of peft (`adapter/`), or merged
into the LLM.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from pargo_ds.config import RunConfig
from pargo_ds.convert.hf_folder import finish_folder
from pargo_ds.convert.weight_files import FILE_BYTES, write_hf_weights
from pargo_ds.convert.weights import total_bytes
from pargo_ds.convert.zero.checkpoint_files import open_checkpoint
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.errors import CheckpointError
from pargo_ds.files.whole_output import check_free_to_write, check_space, whole_output

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
    """Write the folder `out`, which is whole or absent. Return the numbers of parameters,
    {"trained": ..., "frozen": ...}. The conversion takes about as much memory as the largest
    tensor.

    Args:
        checkpoint: the folder of a step; the folder of a run or its checkpoints/, of which the
            newest checkpoint is used; or a folder of DeepSpeed's save_checkpoint.
        dtype: type of the weights (default: the run's precision). fp32 keeps trained weights
            exactly.
        file_bytes: a new safetensors file begins after this number of bytes.
        run: the run file; only for checkpoints of DeepSpeed alone.

    Raises:
        CheckpointError, ConfigError: the checkpoint or the sources of the run do not fit, `out`
            exists, or the disk is too full.
    """
    check_free_to_write(out.absolute(), force=force, sources=[checkpoint])
    files = open_checkpoint(checkpoint, run)
    dtype = dtype or DTYPES[files.run.train.precision]
    try:
        source = CheckpointWeights(
            files, lora="merged" if merge_lora else "separate", dtype=dtype, wait=False
        )
        check_free_to_write(out.absolute(), force=force, sources=source.frozen.folders)
    except CheckpointError:
        files.check()  # an altered file is a better explanation than the fault in its contents
        raise
    with whole_output(out, force=force, sources=[files.where]) as aside:
        check_space(aside, total_bytes(source.specs.values()))
        try:
            hashes = write_hf_weights(source, aside, file_bytes)
        except CheckpointError:
            files.check()
            raise
        if source.not_verified is not None:
            log.warning("%s: %s", source.where, source.not_verified)
        source.write_adapter(aside / ADAPTER)
        source.write_description(aside)
        finish_folder(aside, hashes)
        source.files.check()
    return source.counts()
