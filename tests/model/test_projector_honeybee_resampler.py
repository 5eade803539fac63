"""Honeybee's resampler, written again head by head after khanrc/honeybee."""

from __future__ import annotations

import torch
from projector_oracles import BOUND, compare_function, made

LAYERS, HEADS, WIDTH = 3, 2, 16


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def norm(x, w, name, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(queries, source, w, name):
    dim, heads = WIDTH // HEADS, []
    q = linear(queries, w, f"{name}.query")
    k, v = linear(source, w, f"{name}.key"), linear(source, w, f"{name}.value")
    for head in range(HEADS):
        part = slice(head * dim, (head + 1) * dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / dim**0.5
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(shares @ v[..., part])
    return linear(torch.cat(heads, -1), w, f"{name}.output")


def reference(patches, w):
    patches = linear(patches, w, "input")
    x = w["queries.weight"].expand(patches.shape[0], -1, -1)
    for n in range(LAYERS):
        at = f"layers.{n}"
        x = norm(x, w, f"{at}.query_norm")  # and this is what the residual adds to
        source = torch.cat([norm(patches, w, f"{at}.patch_norm"), x], 1)  # their order is no matter
        x = x + attention(x, source, w, f"{at}.heads")
        inner = norm(x, w, f"{at}.ffn_norm")
        gate = linear(inner, w, f"{at}.ffn.gate")
        inner = gate / (1 + (-gate).exp()) * linear(inner, w, f"{at}.ffn.up")
        x = x + linear(norm(inner, w, f"{at}.ffn.norm", 1e-6), w, f"{at}.ffn.down")
    return linear(x, w, "output")


def test_it_is_honeybees_resampler():
    options = {"tokens": 5, "layers": LAYERS, "width": WIDTH, "heads": HEADS, "ffn_width": 32}
    compare_function(made("honeybee_resampler", **options), reference, BOUND)
