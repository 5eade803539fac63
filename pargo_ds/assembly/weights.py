"""Load the weights from which a run starts: those of an exported folder, or pretrained weights with
a new projector.

Under ZeRO-3 the LLM (or a whole exported model) is partitioned while it is loaded, so that no rank
holds all of it. Vision encoder and projector are small; they are partitioned when DeepSpeed gets
the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pargo_ds import distributed
from pargo_ds.assembly.configs import check_start, model_config
from pargo_ds.assembly.zero import whole_weight
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.files.sha256sums import check_hashes
from pargo_ds.model import ParGoForConditionalGeneration, ParGoProcessor, ParGoVisionConfig
from pargo_ds.model.vision import VisionTower, load_pretrained_vision


def dtype_of(run: RunConfig) -> torch.dtype:
    """Return the type of weights in the run's precision."""
    if run.train.precision == "bf16":
        return torch.bfloat16
    return torch.float32


def load_exported(run: RunConfig, zero3: dict[str, Any] | None) -> ParGoForConditionalGeneration:
    """Load all weights of an exported folder; the run file must describe the same model.

    If the folder has hashes, every file is compared with them first; the ranks divide this work.
    """
    assert run.start_from is not None
    folder, rank, ranks = Path(run.start_from), distributed.rank(), distributed.world_size()
    distributed.run_on_all_ranks(lambda: check_hashes(folder, rank, ranks))
    check_start(run)
    with partition_while_loading(zero3), reading_weights("start_from", str(folder)):
        model, info = ParGoForConditionalGeneration.from_pretrained(
            run.start_from, dtype=dtype_of(run), output_loading_info=True
        )
    if zero3 is not None:
        take_buffers_of_rank_0(model)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    faults = {kind: info[kind] for kind in kinds if info[kind]}
    if faults:
        raise ConfigError(f"start_from: {run.start_from} does not hold this model: {faults}")
    return model


def assemble_parts(
    run: RunConfig, processor: ParGoProcessor, zero3: dict[str, Any] | None
) -> ParGoForConditionalGeneration:
    """Load pretrained vision encoder and LLM, and make a new projector."""
    config = model_config(run, processor.image_token_id, offline=False)
    llm = load_llm(run, config.text_config, zero3)
    config.projector_config.output_std = embedding_std(llm)
    return ParGoForConditionalGeneration(
        config, vision=load_vision(run, config.vision_config), llm=llm
    )


def load_llm(
    run: RunConfig, config: PretrainedConfig, zero3: dict[str, Any] | None
) -> PreTrainedModel:
    """Load the causal LM with its published weights, none of which may be missing, or with random
    weights, as the run file says.
    """
    if run.llm.weights == "random":
        return AutoModelForCausalLM.from_config(config)
    with partition_while_loading(zero3), reading_weights("llm.name", run.llm.name):
        loaded = AutoModelForCausalLM.from_pretrained(
            run.llm.name, revision=run.llm.revision, dtype=dtype_of(run), output_loading_info=True
        )
    # The types of transformers do not say that this is a pair.
    llm, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    if zero3 is not None:
        take_buffers_of_rank_0(llm)
    if info["missing_keys"] or info["mismatched_keys"]:
        raise ConfigError(
            f"llm.name: {run.llm.name} lacks weights: missing {sorted(info['missing_keys'])[:5]}, "
            f"of another shape {sorted(map(str, info['mismatched_keys']))[:5]}"
        )
    return llm


def load_vision(run: RunConfig, config: ParGoVisionConfig) -> VisionTower:
    """Load the encoder with local, published or random weights, as `vision.weights` says."""
    weights = run.vision.weights
    if weights == "random":
        return VisionTower(config)
    if weights is None:
        with reading_weights("vision.name", run.vision.name):
            return load_pretrained_vision(config, run.vision.name, run.vision.revision)
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ConfigError(f"vision.weights: {weights} is no safetensors file; nothing else is read")
    tower = VisionTower(config)
    with reading_weights("vision.weights", weights):
        tower.load_backbone(load_file(path))
    return tower


def embedding_std(llm: PreTrainedModel) -> float:
    """Return the standard deviation of the LLM's word embeddings. Visual tokens start at this
    scale.
    """
    weight = cast("nn.Parameter", llm.get_input_embeddings().weight)
    with whole_weight(weight):
        return float(weight.detach().float().std())


@contextmanager
def partition_while_loading(zero3: dict[str, Any] | None) -> Iterator[None]:
    """Within this context transformers' from_pretrained partitions weights over the ranks, unless
    `zero3` is None.

    It is for from_pretrained only: a new model that is built in this context would not get
    transformers' initial values.
    """
    if zero3 is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    keep_alive = HfDeepSpeedConfig(zero3)  # transformers holds a weak reference to it
    yield
    del keep_alive


def take_buffers_of_rank_0(model: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks. Collective.

    Under ZeRO-3 from_pretrained loads buffers (such as the statistics of a batch norm) on rank 0
    only; the other ranks keep those of a new model (seen with transformers 4.57).
    """
    buffers = dict(model.named_buffers())
    values: dict[str, torch.Tensor] = {}
    if distributed.is_main():
        values = {name: buffer.cpu() for name, buffer in buffers.items()}
    values = distributed.broadcast_object(values)
    for name, buffer in buffers.items():
        buffer.copy_(values[name])


@contextmanager
def reading_weights(what: str, name: str) -> Iterator[None]:
    """Within this context missing and damaged weight files raise ConfigError, because another start
    would fail in the same way.
    """
    try:
        yield
    except SafetensorError as error:
        raise ConfigError(
            f"{what}: the weights of {name} are damaged ({error}); fetch or export them again"
        ) from error
    except OSError as error:
        if error.errno is not None or not Path(name).is_dir():  # the machine's or the network's
            raise
        raise ConfigError(
            f"{what}: {name} holds no weights ({' '.join(str(error).split())[:300]})"
        ) from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{what}: config.json and weights of {name} do not belong together ({said})"
        ) from error
