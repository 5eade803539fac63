"""The attention of the LLM within each sample of a packed row. It is registered with transformers
as `pargo_packed`.

transformers' SDPA road finds the sample boundaries in position_ids and builds a (tokens, tokens)
mask; on a CPU that mask costs the whole square (48 % of a training step at 10 samples of 100
tokens, measured). Here a packed row never has a mask: FlashAttention over cu_seqlens (`varlen`), or
one causal SDPA call per sample (`sdpa`). Without boundaries (generation, unpacked batches) it is
transformers' SDPA itself, padding mask included.

A graph that torch.compile traces cannot read the boundaries, so there `sdpa` is one call with a mask
of the whole row, made from cu_seqlens on the device.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .attention import log_once
from .flash import REFERENCE, flash_varlen, resolve_provider, source_on_gpu

# The code of an export may be loaded beside the installed package. Each has its own guard, so
# neither may replace the other in transformers' tables.
NAME = "pargo_packed"
if __package__ != "pargo_ds.model":
    NAME += f"_{zlib.crc32(__name__.encode()):08x}"
_inside_packed_row: ContextVar[bool] = ContextVar("pargo_packed_row", default=False)
_unlogged: ContextVar[bool] = ContextVar("pargo_packed_unlogged", default=False)


class LLMAttention(NamedTuple):
    """Road of packed rows: llm auto | varlen | sdpa | eager, and FlashAttention's provider."""

    llm: str = "auto"
    provider: str = "auto"


def packed_positions(
    cu_seqlens: torch.Tensor,
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    use_cache: bool | None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """Return the positions `(1, tokens)`, which restart at each sample of a pack.

    Raises:
        ValueError: a max_seqlen below the longest sample; a mask or a cache, or positions that do
            not restart there: samples would see each other, silently.
    """
    if attention_mask is not None or past_key_values is not None or use_cache:
        raise ValueError(
            "a packed batch (cu_seqlens) takes no attention_mask and no cache: with either, samples see each other. "
            "Pass attention_mask=None and use_cache=False"
        )
    lengths = cu_seqlens.diff().long()
    if max_seqlen is not None and max_seqlen < (longest := int(lengths.max())):
        raise ValueError(
            f"max_seqlen is {max_seqlen}, but the longest sample of cu_seqlens has {longest} tokens"
        )
    starts = cu_seqlens[:-1].long().repeat_interleave(lengths)
    expected = torch.arange(starts.numel(), device=starts.device) - starts
    expected = expected.unsqueeze(0)  # (1, tokens)
    if position_ids is not None and not torch.equal(position_ids.to(expected), expected):
        raise ValueError(
            "position_ids of a packed batch must restart at 0 at each boundary of cu_seqlens"
        )
    return expected


@contextmanager
def packed_row(packed: bool) -> Iterator[None]:
    """Within this context no mask is built, and attention without sample boundaries is an error
    instead of a silent leak.
    """
    token = _inside_packed_row.set(packed)
    try:
        yield
    finally:
        _inside_packed_row.reset(token)


@contextmanager
def unlogged() -> Iterator[None]:
    """Within this context the chosen road is not logged, because it is not that of the run."""
    token = _unlogged.set(True)
    try:
        yield
    finally:
        _unlogged.reset(token)


def packed_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return transformers' SDPA mask; None for a packed row."""
    if _inside_packed_row.get():
        return None
    return sdpa_mask(*args, **kwargs)


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    pargo_llm: LLMAttention | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention `(rows, tokens, heads, head_dim)` of query `(rows, heads, tokens,
    head_dim)`, key and value with their own number of heads; `cu_seq_lens_q` `(samples + 1,)`
    marks one packed row.

    Scores may be capped (`softcap`, Gemma 2) and have a sink per head (`s_aux` `(heads,)`,
    gpt-oss): both are computed as transformers' eager attention does, which SDPA would leave out in
    silence.

    Raises:
        ValueError: a packed row whose boundaries did not arrive, or boundaries with several rows.
    """
    changed = softcap is not None or s_aux is not None
    _check_row(module, query, attention_mask, cu_seq_lens_q)
    if cu_seq_lens_q is None and changed:
        out = _eager(query, key, value, attention_mask, scaling, dropout, softcap, s_aux)
        return out.transpose(1, 2).contiguous(), None
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    choice = pargo_llm or LLMAttention()
    window = kwargs.get("sliding_window")
    kind = (query.device, query.dtype, query.shape[-1], dropout, changed)
    if torch.compiler.is_compiling():
        road = _road_in_graph(choice.llm, choice.provider, *kind)
    else:
        road = choose_road(choice, *kind)
        if not _unlogged.get():
            log_once(road.message)
    if torch.compiler.is_compiling() and road.source in ("", REFERENCE):
        if changed:
            raise ValueError("a compiled layer has no road for capped scores and sinks")
        mask = row_mask(cu_seq_lens_q, query.shape[2], window)
        out = _sdpa(query, key, value, mask, scaling=scaling, dropout=dropout)
        return out.transpose(1, 2).contiguous(), None
    if road.name == "varlen":
        ends = cu_seq_lens_q.to(torch.int32)
        return _varlen(query, key, value, ends, max_length_q, window, scaling, road.source), None
    one_sample = partial(_sdpa, dropout=dropout, scaling=scaling)
    if road.name == "eager":
        one_sample = partial(_eager, dropout=dropout, scaling=scaling, softcap=softcap, sinks=s_aux)
    return _sample_by_sample(query, key, value, cu_seq_lens_q.tolist(), window, one_sample), None


def _check_row(
    module: nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None,
) -> None:
    """Raise ValueError where the samples of a packed row would see each other."""
    if cu_seq_lens_q is None and _inside_packed_row.get():
        raise ValueError(
            f"{type(module).__name__} got a packed row without cu_seq_lens_q: this LLM does not hand keyword "
            "arguments on to its attention, and samples would see each other"
        )
    if attention_mask is not None and _inside_packed_row.get():
        raise ValueError(
            f"{type(module).__name__} brings a mask of its own, which a packed row would leave out"
        )
    if cu_seq_lens_q is not None and query.shape[0] != 1:
        raise ValueError(
            f"cu_seq_lens_q marks samples of one packed row, found {query.shape[0]} rows"
        )


class Road(NamedTuple):
    """How packed rows are computed: varlen, sdpa or eager; the source of varlen; the message to
    log.
    """

    name: str
    source: str
    message: str


# This function is called in every layer of every step, so its results are cached.
@lru_cache(maxsize=256)
def choose_road(
    choice: LLMAttention,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    dropout: float,
    changed: bool,
) -> Road:
    """Return the road for tensors of this kind. `changed`: scores are capped or have sinks.

    Raises:
        ValueError: the chosen road cannot compute this LLM, or the provider is not available.
    """
    name, source, reason = choice.llm, "", "asked for"
    if changed and name in ("varlen", "sdpa"):
        raise ValueError(
            f"attention.llm: {name} cannot compute this LLM, whose attention caps its scores or "
            "has sinks; set it to auto or eager"
        )
    if name == "varlen" and dropout > 0:
        problem = f"attention.llm: varlen has no dropout, the LLM asks for {dropout}"
        raise ValueError(f"{problem}; set it to sdpa")
    if name == "auto" and changed:
        name, reason = "eager", "its scores are capped or have sinks"
    elif name == "auto":
        shown = f"{dtype}, head_dim {head_dim}, dropout {dropout}"
        name, reason = "sdpa", f"no FlashAttention here for {shown} on {device.type}"
        if dropout == 0 and source_on_gpu(choice.provider, device, dtype, head_dim):
            name, reason = "varlen", "one call for all samples"
    if name == "varlen":
        source, why = resolve_provider(choice.provider, device)
        reason += f"; provider {source}: {why}"
    message = f"attention: packed rows of the LLM by {name} on {device.type} ({reason})"
    return Road(name, source, message)


@torch.compiler.assume_constant_result
def _road_in_graph(llm: str, provider: str, *kind: Any) -> Road:
    """`choose_road`, called once while torch.compile traces. A tuple as its argument would be
    compared by identity, and each forward would be traced anew.
    """
    return choose_road(LLMAttention(llm, provider), *kind)


def row_mask(cu_seqlens: torch.Tensor, tokens: int, window: int | None) -> torch.Tensor:
    """Return which keys each token of a packed row sees, bool `(tokens, tokens)`: those of its own
    sample up to itself, the last `window` of them where there is one.
    """
    place = torch.arange(tokens, device=cu_seqlens.device)
    sample = torch.bucketize(place, cu_seqlens, right=True)
    seen = (sample[:, None] == sample) & (place[:, None] >= place)
    if window is not None:
        seen = seen & (place[:, None] - place < window)
    return seen


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int | None,
    window: int | None,
    scaling: float | None,
    source: str,
) -> torch.Tensor:
    """One FlashAttention call for all samples -> `(1, tokens, heads, head_dim)`."""
    if longest is None:
        longest = int(ends.diff().max())
    left = None if window is None else window - 1
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, head_dim)
    out = flash_varlen(
        q, k, v, ends, ends, longest, longest,
        source=source, window=(left, 0), causal=True, scale=scaling,
    )  # fmt: skip
    return out.unsqueeze(0)


def _sample_by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: list[int],
    window: int | None,
    one_sample: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
    ],
) -> torch.Tensor:
    """One causal call per sample -> `(1, tokens, heads, head_dim)`; a sample longer than a sliding
    window gets the window as a mask of its own.
    """
    outputs = []
    for start, end in pairwise(bounds):
        length, mask = end - start, None
        if window is not None and length > window:
            mask = (
                torch.ones(length, length, dtype=torch.bool, device=query.device)
                .tril()
                .triu(1 - window)
            )
        outputs.append(
            one_sample(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], mask)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out -> `(rows, heads, tokens, head_dim)`. `mask`: True where a key is seen,
    or numbers to add; None is causal, or everything for a single query.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        # The smallest number and not -inf: a padding row that sees nothing must not become NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights[..., : key.shape[2]].to(query.dtype)  # what goes to the sink is lost
    return F.dropout(weights, dropout) @ value


def use_packed_attention(llm: PreTrainedModel) -> None:
    """Switch an LLM to `pargo_packed` if it would use SDPA or has only eager attention (gpt-oss).
    Any other choice is kept.

    An LLM whose layers see chunks (Llama 4) keeps SDPA: only its mask knows them.
    """
    chunked = getattr(llm.config, "attention_chunk_size", None) is not None
    implementation = llm.config._attn_implementation
    by_default = implementation == "sdpa" or (implementation == "eager" and not llm._supports_sdpa)
    if by_default and getattr(llm, "_supports_attention_backend", False) and not chunked:
        llm.set_attn_implementation(NAME)


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, packed_mask)
