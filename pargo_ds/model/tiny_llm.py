"""A small copy of any causal LM's configuration: the same kind of layers, each of them tiny.

What depends on lengths (sliding windows, chunks, the number of positions) shrinks with it, so that
samples of a dozen tokens meet in the copy what samples of thousands meet in the original.
"""

import re
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

WIDTH = 32
HEADS = 4
HEAD_DIM = 8
VOCABULARY = 97
LENGTHS = (6, 1, 9, 12)
"""Tokens of the samples that a tiny copy is asked with; limits of the copy lie below the longest.
"""
SHORT_WINDOW, SHORT_POSITIONS, BETWEEN, UNREACHED = 4, 8, 16, 64
"""What a limit becomes in the copy: a window or a number of positions that samples exceed; one that
the row of all samples exceeds, but none of them; one that nothing exceeds.
"""
BLOCK = 2
"""What a number of kept blocks and the tokens of such a block become: samples have more blocks than
are kept.
"""

Limits = tuple[tuple[str, int, str], ...]
"""Lengths of a configuration that are exceeded: (name, tokens, "sample" or "row"), sorted."""

WINDOWS = (
    "sliding_window|sliding_window_size|attention_window_size|attention_chunk_size|window_size"
    "|local_attention|local_attention_window_len|keep_window_size|index_topk|indexer_budget"
)
POSITIONS = (
    "max_position_embeddings|original_max_position_embeddings|n_positions|n_ctx|max_seq_len"
    "|max_positions|max_target_positions|model_max_length|context_length"
    "|floor_scale|log_scaling_n_floor"
)
ROTATED_PARTS = "partial_rotary_factor|rotary_pct|rope_pct"
LAYERS = (
    "num_hidden_layers|n_layers?|num_layers|num_blocks|decoder_layers|num_decoder_layers"
    "|encoder_layers|num_encoder_layers"
)
NOT_COPIED = (
    "model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "quantization_config", "auto_map", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_attn_implementation_autoset", "pruned_heads",
)  # fmt: skip

# First match wins; the values belong together: heads * head_dim = width, ssm heads * their
# head_dim = 2 * width (state-space layers are twice as wide in every published family).
SIZES: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("mamba_d_ssm|attention_hidden_size", lambda n: 2 * WIDTH),
    ("(mamba_)?n_heads_ssm|mamba_n_heads|n_mamba_heads|mamba_num_heads", lambda n: 2 * HEADS),
    ("attention_head_dim|qk_head_dim", lambda n: 2 * HEAD_DIM),
    ("linear_num_(key|value)_heads|linear_num_heads|index_n_heads", lambda n: HEADS),
    (
        "(.*_)?num_(attention|heads)_?(heads)?|n_heads?|(encoder|decoder)_attention_heads"
        "|attention_heads|num_(encoder|decoder)_attention_heads|num_query_groups",
        lambda n: HEADS,
    ),
    ("(.*_)?head_dim(_.*)?|kv_channels|dim_head|d_head|mamba_(d_head|headdim)|attention_head_size",
     lambda n: HEAD_DIM),
    ("rotary_dim", lambda n: HEAD_DIM // 2),
    (".*(moe|expert|shared)\\w*(intermediate|ffn_hidden)_size", lambda n: min(n, 16)),
    (".*(intermediate_size|ffn_dim|hidden_dim|ffn_hidden_size)(_mlp)?|n_inner|dff|dim_ff|d_inner"
     "|feed_forward_size|nffn_hidden_size", lambda n: 48),
    ("(num|n)_shared_experts|moe_num_shared_experts|zero_expert_num", lambda n: min(n, 1)),
    ("(num|n|moe_num)_?(routed_|local_)?experts", lambda n: min(n, 4)),
    (".*experts_per_tok(en)?|moe_k|moe_topk|moe_top_k", lambda n: min(n, 2)),
    ("n_group|topk_group|num_expert_group|(mamba_)?n_groups|mamba_ngroups|o_groups", lambda n: 1),
    ("index_(topk_blocks|block_size)", lambda n: min(n, BLOCK)),
    (".*(_rank|dt_rank)", lambda n: min(n, HEAD_DIM)),
    ("(.*_)?(state_size|d_state|chunk_size|block_size)", lambda n: min(n, 8)),
    ("hidden_size_per_layer_input", lambda n: HEAD_DIM),
    ("(.*_)?(hidden_size|n_embd|d_model|emb_dim|embedding_dim|d_embed|embedding_size"
     "|embed_proj_dim|embed_dim|lru_width)", lambda n: WIDTH),
)  # fmt: skip


def tiny_config(
    config: PretrainedConfig,
    limits: Limits | None = None,
    *,
    vocab_size: int | None = None,
    room: int = UNREACHED,
) -> PretrainedConfig:
    """Copy a causal LM's configuration with a width of 32 and as few layers as show every kind.

    Args:
        config: any causal LM's configuration; it is not changed.
        limits: the lengths that will be exceeded, from exceeded_limits. Windows and numbers of
            positions among them stay below the longest of LENGTHS in the copy, or, where only a row
            exceeds them, below their sum; others above. None: every limit is exceeded by samples.
        vocab_size: of the copy; None: VOCABULARY, with control tokens among its first ids.
        room: what a limit becomes that nothing exceeds.

    Raises:
        ValueError, TypeError or another error of the family's configuration: it accepts no such
            copy.
    """
    body = config.to_dict()
    layers = _size(config, body, "num_hidden_layers")
    shrink = _Shrinking(
        layers=(layers, _kept_layers(body, layers)),
        heads=_size(config, body, "num_attention_heads"),
        head_dim=_head_dim(config, body),
        limits=limits,
        vocabulary=vocab_size or VOCABULARY,
        keep_ids=vocab_size is not None,
        room=room,
    )
    return type(config)(**shrink.section(body))


def exceeded_limits(config: PretrainedConfig, longest: int, row: int | None = None) -> Limits:
    """Return the lengths named in a configuration (windows, positions) that a sample of `longest`
    tokens exceeds, or else a row of `row` tokens, as sorted (name, tokens, "sample" or "row").
    """
    found = set()

    def look(section: dict) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                look(value)
            elif _is_limit(str(key)) and _is_size(value) and value < max(longest, row or 0):
                by = "sample" if value < longest else "row"
                found.add((key, value, by))

    look(config.to_dict())
    return tuple(sorted(found))


class _Shrinking:
    def __init__(
        self,
        layers: tuple[int | None, int],
        heads: int | None,
        head_dim: int,
        limits: Limits | None,
        vocabulary: int,
        keep_ids: bool,
        room: int,
    ) -> None:
        self.all_layers, self.layers = layers
        self.heads = heads
        self.head_dim = head_dim
        self.exceeded: dict[tuple[str, int], str] | None = None
        if limits is not None:
            self.exceeded = {(name, tokens): what for name, tokens, what in limits}
        self.vocabulary = vocabulary
        self.keep_ids = keep_ids
        self.room = room

    def section(self, body: dict[str, Any]) -> dict[str, Any]:
        """A configuration's dict, or one of the dicts inside it."""
        copied = {key: value for key, value in body.items() if key not in NOT_COPIED}
        small = {key: self.entry(key, value) for key, value in copied.items()}
        if "expand" in body and "num_heads" in body:  # Mamba 2 counts state-space heads so
            small["num_heads"] = 2 * HEADS
        if "use_mamba_kernels" in body:  # they exist for CUDA only
            small["use_mamba_kernels"] = False
        return small

    def entry(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            if value and all(str(place).isdigit() for place in value):  # Gemma 4: by layer
                value = {k: v for k, v in value.items() if int(k) < self.layers}
            if "return_dict" in value:
                # A configuration inside the configuration (DBRX) refuses the general fields.
                general = PretrainedConfig().to_dict()
                value = {k: v for k, v in value.items() if k not in general}
            return self.section(value)
        if isinstance(value, (list, tuple)):
            return self.sequence(key, list(value))
        if isinstance(value, float) and re.fullmatch(ROTATED_PARTS, key):
            rotated = int(value * HEAD_DIM)
            if rotated in range(2, HEAD_DIM + 1, 2):  # whole pairs
                return value
            return 0.5
        if not _is_size(value) or value < 1:
            return value
        return self.number(key, value)

    def number(self, key: str, value: int) -> int:
        if key.endswith("_token_id"):
            if self.keep_ids and value < self.vocabulary:
                return value
            return value % 3
        if "vocab_size" in key:
            return self.vocabulary
        if re.fullmatch(LAYERS, key):
            return min(value, self.layers)
        if _is_limit(key):
            return self.limit(key, value)
        if re.fullmatch("(.*_)?(num_key_value_heads|num_kv_heads|kv_n_heads)", key):
            most = HEADS if self.heads in (None, value) else HEADS // 2
            return min(value, most)
        for pattern, size in SIZES:
            if re.fullmatch(pattern, key):
                return size(value)
        return value

    def limit(self, key: str, value: int) -> int:
        by: str | None = "sample"
        if self.exceeded is not None:
            by = self.exceeded.get((key, value))
        if by is None:
            return self.room
        if by == "row":
            return BETWEEN
        if re.fullmatch(WINDOWS, key):
            return SHORT_WINDOW
        return SHORT_POSITIONS

    def sequence(self, key: str, value: list) -> list:
        if key.endswith(("short_factor", "long_factor")):
            # One number for each pair of rotated dimensions, which may be a part of the head.
            return value[: max(1, HEAD_DIM * len(value) // self.head_dim)]
        if key == "attention_types":  # GPT-Neo: [[kinds, how often], ...]
            return [[kinds, self.layers // len(kinds)] for kinds, _ in value[:1]]
        if _are_places(key, value):
            return [place for place in value if place < self.layers]
        if self.all_layers and len(value) == self.all_layers > 1:
            value = value[: self.layers]
        if key.endswith("_token_id"):
            return [self.number(key, item) for item in value]
        return [self._item(key, item) for item in value]

    def _item(self, key: str, item: Any) -> Any:
        """An entry of a list; a list inside of it stays as it is."""
        if isinstance(item, list):
            return item
        return self.entry(key, item)


def _kept_layers(body: dict[str, Any], layers: int | None) -> int:
    """How many of the first layers show every kind of layer, at least four."""
    if layers is None:
        return 4
    needed = 4
    for key, value in body.items():
        if _are_places(key, value):
            needed = max(needed, 1 + value[0])
        elif isinstance(value, list) and len(value) == layers > 1:
            needed = max(needed, 1 + max(value.index(kind) for kind in value))
        elif _is_size(value) and re.search(
            "period|interval|every_n|step$|pattern|dense_replace", key
        ):
            needed = max(needed, value)
    if body.get("use_sliding_window") and _is_size(body.get("max_window_layers")):
        needed = max(needed, body["max_window_layers"] + 1)
    return min(layers, needed)


def _are_places(key: str, value: Any) -> bool:
    """Whether a list holds numbers of layers, in rising order."""
    if not isinstance(value, list) or not re.search("layer|indices|idxs", key) or not value:
        return False
    return all(map(_is_size, value)) and value == sorted(set(value)) and len(value) > 1


def _size(config: PretrainedConfig, body: dict[str, Any], name: str) -> int | None:
    """A number by its general name; families have names of their own for it."""
    value = body.get(config.attribute_map.get(name, name))
    return value if _is_size(value) else None


def _head_dim(config: PretrainedConfig, body: dict[str, Any]) -> int:
    """Width of an attention head; where a family does not say it, the model's width divided by its
    heads.
    """
    said = _size(config, body, "head_dim")
    width, heads = _size(config, body, "hidden_size"), _size(config, body, "num_attention_heads")
    if said:
        return said
    if width and heads:
        return width // heads
    return 2 * HEAD_DIM


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_limit(key: str) -> bool:
    return re.fullmatch(f"{WINDOWS}|{POSITIONS}", key) is not None
