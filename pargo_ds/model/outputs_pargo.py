"""What a forward pass returns, and the name of the cache in it: an output of the transformers at hand.

transformers 5.24 calls the keys and values of earlier tokens `cache`, older ones `past_key_values`: as an argument of a
model, and as a field of its output.
"""

import inspect
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

CACHE = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in ("cache", "past_key_values"))


@dataclass
class ParGoOutput(CausalLMOutputWithPast):
    """What `ParGoForConditionalGeneration.forward` returns: a causal LM's output of the transformers at hand.

    `num_targets` counts positions in the loss; it is there, and `logits` are not, only with `return_logits=False`.
    """

    num_targets: torch.Tensor | None = None


def output_of(llm_output: ModelOutput, **ours: Any) -> ParGoOutput:
    """Our output with the LLM's cache, hidden states and attentions."""
    theirs = {name: getattr(llm_output, name, None) for name in (CACHE, "hidden_states", "attentions")}
    return ParGoOutput(**theirs, **ours)


def one_cache(old: Cache | None, new: Cache | None) -> Cache | None:
    """The cache that came by either name.

    Raises:
        ValueError: two different ones.
    """
    if old is not None and new is not None and old is not new:
        raise ValueError("past_key_values and cache are two names of one argument, and two objects came; give one")
    return old if new is None else new


@lru_cache(maxsize=8)
def cache_argument(llm: type[nn.Module]) -> str:
    """What this LLM calls its cache: remote code may use another word than the transformers at hand."""
    arguments = inspect.signature(llm.forward).parameters
    return next((name for name in (CACHE, "past_key_values", "cache") if name in arguments), CACHE)


def cached_length(cache: Cache | None) -> int:
    """Tokens that a cache has seen."""
    return 0 if cache is None else int(cache.get_seq_length())
