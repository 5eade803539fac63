"""The output of a forward pass, and the name of the cache in it, which depends on the version of
transformers.

The keys and values of earlier tokens, as an argument of a model and as a field of its output, are
called `cache` in transformers 5.24 and `past_key_values` in older versions.
"""

import inspect
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

_FIELDS = [field.name for field in fields(CausalLMOutputWithPast)]
CACHE = next(name for name in _FIELDS if name in ("cache", "past_key_values"))


@dataclass
class ParGoOutput(CausalLMOutputWithPast):
    """What `ParGoForConditionalGeneration.forward` returns: a causal LM's output of the
    transformers at hand.

    `num_targets` counts positions in the loss; it is there, and `logits` are not, only with
    `return_logits=False`.
    """

    num_targets: torch.Tensor | None = None


def output_of(llm_output: object, **ours: Any) -> ParGoOutput:
    """Return our output with the LLM's cache, hidden states and attentions."""
    names = (CACHE, "hidden_states", "attentions")
    theirs = {name: getattr(llm_output, name, None) for name in names}
    return ParGoOutput(**theirs, **ours)


def one_cache(old: Cache | None, new: Cache | None) -> Cache | None:
    """Return the cache that was given under either name.

    Raises:
        ValueError: two different caches were given.
    """
    if old is not None and new is not None and old is not new:
        raise ValueError(
            "past_key_values and cache are two names of one argument, and two objects came; give one"
        )
    if new is None:
        return old
    return new


@lru_cache(maxsize=8)
def cache_argument(llm: type[nn.Module]) -> str:
    """Return the name of this LLM's argument for the cache; remote code may have another name than
    the installed version of transformers.
    """
    arguments = inspect.signature(llm.forward).parameters
    return next((name for name in (CACHE, "past_key_values", "cache") if name in arguments), CACHE)


def cached_length(cache: Cache | None) -> int:
    """Return the number of tokens that a cache has seen."""
    if cache is None:
        return 0
    return int(cache.get_seq_length())
