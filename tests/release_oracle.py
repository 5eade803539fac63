"""What the authors' release computes, in plain torch operations on its own state dict.

Written from bytedance/ParGo@60b5bd0 and InternLM2's modelling code, with none of this project's
code: fused projections, additive -inf masks, LoRA beside the weights. `w` is the state dict,
`pixels` are normalised.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def layer_norm(x, w, name, eps):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q, k, v, heads, added=0.0):
    """`(rows, tokens, width)` each; `added` to the scores."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + added
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


# The vision tower (eva_vit.py: EVAVisionTransformer, return_all_features)


def rope_tables(grid: int, pretrained: int, dim: int):
    """VisionRotaryEmbeddingFast: frequencies of rows and columns, each number twice."""
    freqs = 1.0 / 10000 ** (torch.arange(0, dim, 2)[: dim // 2].double() / dim)
    angles = (torch.arange(grid) / grid * pretrained)[:, None].double() * freqs
    angles = angles.repeat_interleave(2, dim=-1)  # (grid, dim)
    rows, columns = angles[:, None].expand(grid, grid, -1), angles[None].expand(grid, grid, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (patches, 2 dim)
    return both.cos(), both.sin()


def rotate_pairs(x, cos, sin):
    """The class token stays as it is."""
    patches = x[:, :, 1:]
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([x[:, :, :1], patches * cos + turned * sin], dim=2)


def eva(pixels, w, *, patch, heads, pretrained_grid, eps=1e-6):
    """Normalised pixels -> `(images, 1 + patches, width)` before the last norm."""
    at = "visual_encoder"
    x = F.conv2d(
        pixels, w[f"{at}.patch_embed.proj.weight"], w[f"{at}.patch_embed.proj.bias"], stride=patch
    )
    grid, width = x.shape[-1], x.shape[1]
    x = x.flatten(2).transpose(1, 2)
    x = (
        torch.cat([w[f"{at}.cls_token"].expand(x.shape[0], -1, -1), x], dim=1)
        + w[f"{at}.pos_embed"]
    )
    cos, sin = (t.to(x.dtype) for t in rope_tables(grid, pretrained_grid, width // heads // 2))
    for n in range(
        1 + max(int(m[1]) for m in (re.match(rf"{at}\.blocks\.(\d+)\.", k) for k in w) if m)
    ):
        b = f"{at}.blocks.{n}"
        y = layer_norm(x, w, f"{b}.norm1", eps)
        q = y @ w[f"{b}.attn.q_proj.weight"].T + w[f"{b}.attn.q_bias"]
        k = y @ w[f"{b}.attn.k_proj.weight"].T
        v = y @ w[f"{b}.attn.v_proj.weight"].T + w[f"{b}.attn.v_bias"]
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
        q, k = (rotate_pairs(split(t), cos, sin).transpose(1, 2).flatten(2) for t in (q, k))
        y = layer_norm(attend(q, k, v, heads), w, f"{b}.attn.inner_attn_ln", eps)
        x = x + linear(y, w, f"{b}.attn.proj")
        y = layer_norm(x, w, f"{b}.norm2", eps)
        hidden = F.silu(linear(y, w, f"{b}.mlp.w1")) * linear(y, w, f"{b}.mlp.w2")
        x = x + linear(layer_norm(hidden, w, f"{b}.mlp.ffn_ln", eps), w, f"{b}.mlp.w3")
    return x


# The projector (qformer_bert.py: BertModel with query_embeds, get_global_local_attention)


def release_masks(partial: int, tokens: int, patches: int, dtype):
    self_mask = torch.zeros(tokens, tokens, dtype=dtype)
    self_mask[:partial, partial:] = float("-inf")
    self_mask[partial:, :partial] = float("-inf")
    cross_mask = torch.zeros(tokens, patches, dtype=dtype)
    size = patches // partial
    for token in range(partial):
        cross_mask[token] = float("-inf")
        cross_mask[token, token * size : (token + 1) * size] = 0
    return self_mask, cross_mask


def bert_attention(x, source, w, name, heads, mask):
    q, k, v = (
        linear(t, w, f"{name}.self.{p}")
        for t, p in ((x, "query"), (source, "key"), (source, "value"))
    )
    y = linear(attend(q, k, v, heads, mask), w, f"{name}.output.dense")
    return layer_norm(y + x, w, f"{name}.output.LayerNorm", 1e-12)


def projector(features, w, *, partial, heads):
    """`(images, patches, vision width)` after ln_vision -> visual tokens `(images, tokens, LLM
    width)`.
    """
    queries = w["query_tokens"].expand(features.shape[0], -1, -1)
    tokens = queries.shape[1]
    x = queries + w["ParGo.bert.embeddings.position_embeddings.weight"][:tokens]
    x = layer_norm(x, w, "ParGo.bert.embeddings.LayerNorm", 1e-12)
    self_mask, cross_mask = release_masks(partial, tokens, features.shape[1], x.dtype)
    at = "ParGo.bert.encoder.layer"
    for n in range(
        1 + max(int(m[1]) for m in (re.match(rf"{re.escape(at)}\.(\d+)\.", k) for k in w) if m)
    ):
        x = bert_attention(x, x, w, f"{at}.{n}.attention", heads, self_mask)
        x = bert_attention(x, features, w, f"{at}.{n}.crossattention", heads, cross_mask)
        hidden = linear(x, w, f"{at}.{n}.intermediate_query.dense")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = linear(hidden, w, f"{at}.{n}.output_query.dense")
        x = layer_norm(hidden + x, w, f"{at}.{n}.output_query.LayerNorm", 1e-12)
    return linear(x, w, "llm_proj")


# The LLM (modeling_internlm2.py), LoRA as peft adds it


def rms_norm(x, weight, eps):
    return weight * (x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt())


def llm_rope(x, config: dict[str, Any]):
    """`(rows, heads, tokens, head_dim)`, dynamic NTK scaling beyond max_position_embeddings."""
    dim, length = x.shape[-1], x.shape[2]
    base, longest = float(config["rope_theta"]), config["max_position_embeddings"]
    if config["rope_scaling"] is not None and length > longest:
        factor = config["rope_scaling"]["factor"]
        base *= (factor * length / longest - (factor - 1)) ** (dim / (dim - 2))
    angles = torch.arange(length).double()[:, None] / base ** (
        torch.arange(0, dim, 2).double() / dim
    )
    cos, sin = (torch.cat([t, t], dim=-1).to(x.dtype) for t in (angles.cos(), angles.sin()))
    half = dim // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def internlm2(embeds, w, config: dict[str, Any], scaling: float):
    """`(1, tokens, width)` -> logits `(1, tokens, vocabulary)`; `w` with peft's names."""
    heads, groups, eps = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["rms_norm_eps"],
    )
    per_group, head_dim = heads // groups, config["hidden_size"] // heads
    at = "llm_model.base_model.model."
    x, length = embeds, embeds.shape[1]
    causal = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    for n in range(config["num_hidden_layers"]):
        layer = f"{at}model.layers.{n}"
        y = rms_norm(x, w[f"{layer}.attention_norm.weight"], eps)
        fused = f"{layer}.attention.wqkv"
        qkv = y @ w[f"{fused}.base_layer.weight"].T
        qkv = qkv + scaling * (
            y @ w[f"{fused}.lora_A.default.weight"].T @ w[f"{fused}.lora_B.default.weight"].T
        )
        qkv = qkv.unflatten(
            -1, (groups, per_group + 2, head_dim)
        )  # (1, tokens, groups, heads of a group + 2, dim)
        q = qkv[..., :per_group, :].flatten(2, 3).transpose(1, 2)
        k, v = (
            qkv[..., i, :].repeat_interleave(per_group, dim=2).transpose(1, 2) for i in (-2, -1)
        )
        q, k = llm_rope(q, config), llm_rope(k, config)
        scores = q @ k.transpose(-1, -2) / math.sqrt(head_dim) + causal
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + y @ w[f"{layer}.attention.wo.weight"].T
        y = rms_norm(x, w[f"{layer}.ffn_norm.weight"], eps)
        gate, up = (y @ w[f"{layer}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w[f"{layer}.feed_forward.w2.weight"].T
    return rms_norm(x, w[f"{at}model.norm.weight"], eps) @ w[f"{at}output.weight"].T


def visual_tokens(pixels, w, *, patch, vision_heads, pretrained_grid, partial, heads):
    """init_models.py, new_encode_img for one tile: class token dropped after ln_vision."""
    features = eva(pixels, w, patch=patch, heads=vision_heads, pretrained_grid=pretrained_grid)
    features = layer_norm(features, w, "ln_vision", 1e-5)[:, 1:]
    return projector(features, w, partial=partial, heads=heads)
