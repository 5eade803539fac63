"""torch.compile of single layers: the decoder layers of the LLM and the blocks of the vision encoder.

All layers of one class share a graph, so that an LLM of any depth is compiled once for training and
once for evaluation. What compiles is `forward` alone: ZeRO-3's hooks, which gather the weights of a
whole layer, and activation checkpointing stay outside, where they would break the graph, and names
of modules and weights stay as they are.

Rows are filled to one length (`pargo_ds.batch.fill`), so that their shape is static; the number of
samples in a row and of images in a batch is dynamic.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from pargo_ds.assembly.model import prove_llm
from pargo_ds.config import RunConfig
from pargo_ds.errors import ConfigError
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.llm import run_packed_llm
from pargo_ds.model.packed_attention import NAME as PACKED_ATTENTION
from pargo_ds.model.packed_attention import LLMAttention, use_packed_attention
from pargo_ds.model.tiny_llm import exceeded_limits, tiny_config
from pargo_ds.training.gathering import layers_to_gather, leaf_layers

log = logging.getLogger("pargo_ds")
BACKEND = "inductor"
OFF = "set train.compile: none"
TINY_ROW = 16
"""Tokens of the row on which a tiny copy of the LLM is tried."""


def check_stage(run: RunConfig, stage: int) -> None:
    """Raise ConfigError where ZeRO-3 would gather the weights of each module inside of a graph."""
    if run.train.compile == "layers" and stage == 3 and run.train.zero3_gather == "modules":
        raise ConfigError(
            "train.compile: layers cannot work with train.zero3_gather: modules, whose hooks run inside "
            f"each layer; set train.zero3_gather: layers, or {OFF}"
        )


def check_llm(run: RunConfig, config: PretrainedConfig) -> None:
    """Raise ConfigError for an LLM whose layers torch.compile cannot take whole, found on a tiny copy
    of it.
    """
    if run.train.compile == "none":
        return
    if prove_llm(run, config).road != "packed":
        raise ConfigError(
            f"train.compile: {run.llm.name} ({config.model_type}) takes each sample in a row of its "
            f"own, whose length changes, so its layers cannot be compiled once; {OFF}"
        )
    longest = run.batch.tokens_per_pack
    limits = exceeded_limits(config, longest, run.batch.tokens_per_row)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        llm = AutoModelForCausalLM.from_config(tiny_config(config, limits)).float()
        use_packed_attention(llm)
        if llm.config._attn_implementation != PACKED_ATTENTION:
            raise ConfigError(
                f"train.compile: {run.llm.name} ({config.model_type}) finds the samples of a row in "
                f"its own way, by a mask that no compiled layer is given; {OFF}"
            )
        compile_llm(llm, TINY_ROW, "eager")
        ends = torch.tensor([0, TINY_ROW // 4, TINY_ROW], dtype=torch.int32)
        lengths = ends.diff().tolist()
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        words = llm.get_input_embeddings()(torch.arange(3, 3 + TINY_ROW)[None])
        run_packed_llm(llm, words, ends, TINY_ROW, "packed", LLMAttention(), position_ids=places)
    torch.compiler.reset()  # graphs of the tiny copy would count as those of the LLM


def layers_to_compile(
    model: ParGoForConditionalGeneration, run: RunConfig, stage: int
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return (blocks of the encoder, layers of the LLM), freezing applied.

    Raises ConfigError where ZeRO-3 does not gather the LLM's layers whole, or where it has none.
    """
    llm = leaf_layers(model.llm)
    if not llm:
        raise ConfigError(
            f"train.compile: {run.llm.name} has no list of layers of one class that shares no weights; {OFF}"
        )
    if stage == 3:
        whole = set(layers_to_gather(model))
        if not whole.issuperset(llm):
            raise ConfigError(
                "train.compile: layers cannot work here under ZeRO-3, which gathers an LLM with LoRA behind "
                f"a frozen projector by modules; take ds_configs/zero2.json, or {OFF}"
            )
    return leaf_layers(model.vision), llm


def compile_layers(
    model: ParGoForConditionalGeneration, run: RunConfig, stage: int, backend: str = BACKEND
) -> None:
    """Compile the layers of LLM and encoder in place, freezing applied; each one when it first runs.

    Raises ConfigError as `layers_to_compile`.
    """
    blocks, llm = layers_to_compile(model, run, stage)
    compile_llm(model.llm, run.batch.tokens_per_row, backend)
    for block in blocks:
        _compile(block, backend, _images_are_dynamic)
    kinds = Counter(type(layer).__name__ for layer in (*blocks, *llm))
    shown = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    log.info(
        "torch.compile (%s): %s, each by itself; rows are filled to %d tokens",
        backend, shown, run.batch.tokens_per_row,
    )  # fmt: skip


def compile_llm(llm: nn.Module, row: int, backend: str) -> None:
    """Compile the layers of an LLM in place for packed rows of `row` tokens; anything else (generation)
    goes on without.
    """

    def is_row(inputs: tuple[Any, ...], options: dict[str, Any]) -> bool:
        ends = options.get("cu_seq_lens_q")
        if ends is None or not inputs or inputs[0].shape[1] != row:
            return False
        torch._dynamo.mark_dynamic(ends, 0)  # its documented name, underscore and all
        return True

    for layer in leaf_layers(llm):
        _compile(layer, backend, is_row)


def _images_are_dynamic(inputs: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Mark the number of images as one that changes; a single image has a graph of its own."""
    if not inputs:
        return False
    torch._dynamo.maybe_mark_dynamic(inputs[0], 0)
    return True


def _compile(
    layer: nn.Module,
    backend: str,
    taken: Callable[[tuple[Any, ...], dict[str, Any]], bool],
) -> None:
    """Let a layer compute inputs that are `taken` by its compiled forward.

    Not module.compile(), which compiles the hooks of a module, too: those of ZeRO-3 break the graph.
    """
    plain = layer.forward
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, backend=backend)

    @functools.wraps(plain)
    def forward(*inputs: Any, **options: Any) -> Any:
        if not taken(inputs, options):
            return plain(*inputs, **options)
        from torch._dynamo.exc import TorchDynamoException  # imports sympy

        try:
            return compiled(*inputs, **options)
        except TorchDynamoException as error:
            raise ConfigError(
                f"train.compile: torch.compile cannot take a {type(layer).__name__} whole "
                f"({_in_short(error)}); {OFF}"
            ) from error

    layer.forward = forward  # of this instance alone


def _in_short(error: Exception) -> str:
    """The first line of Dynamo's page, and what it says of the place."""
    place = "Developer debug context: "
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix(place) for line in lines if line.startswith(place)]
    return f"{type(error).__name__}: {'; '.join([*lines[:1], *said])[:200]}"
