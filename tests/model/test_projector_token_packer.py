"""TokenPacker written again token by token, with bilinear interpolation by its formula."""

from __future__ import annotations

import math

import pytest
import torch
from projector_oracles import BOUND, compare_function, made

WIDTH, HEADS, SIDE = 16, 2, 6


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x, w, name):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(x, w, name):
    return norm(linear(gelu(linear(x, w, f"{name}.0")), w, f"{name}.2"), w, f"{name}.3")


def interpolated(grid, row, column, scale):
    """The value at the middle of a region, from its four neighbours."""
    y, x = (row + 0.5) * scale - 0.5, (column + 0.5) * scale - 0.5
    value = 0
    for at_y in (math.floor(y), math.floor(y) + 1):
        for at_x in (math.floor(x), math.floor(x) + 1):
            share = max(0, 1 - abs(y - at_y)) * max(0, 1 - abs(x - at_x))
            if share:
                value = value + share * grid[:, at_y, at_x]
    return value


def reference(scale):
    def tokens(patches, w):
        grid = patches.reshape(2, SIDE, SIDE, -1)
        keys, values = (mlp(grid, w, name) for name in ("key", "value"))
        dim, found = WIDTH // HEADS, []
        for row in range(SIDE // scale):
            for column in range(SIDE // scale):
                rows = slice(row * scale, (row + 1) * scale)
                columns = slice(column * scale, (column + 1) * scale)
                low = interpolated(grid, row, column, scale)
                query = norm(linear(low, w, "query.0"), w, "query.1")
                q = linear(query, w, "heads.query")
                k = linear(keys[:, rows, columns].flatten(1, 2), w, "heads.key")
                v = linear(values[:, rows, columns].flatten(1, 2), w, "heads.value")
                heads = []
                for head in range(HEADS):
                    part = slice(head * dim, (head + 1) * dim)
                    scores = (q[:, None, part] * k[..., part]).sum(-1) / math.sqrt(dim)
                    heads.append((scores.softmax(-1)[..., None] * v[..., part]).sum(1))
                found.append(linear(torch.cat(heads, -1), w, "heads.output"))
        return linear(gelu(linear(torch.stack(found, 1), w, "hidden.0")), w, "output")

    return tokens


@pytest.mark.parametrize("scale", [2, 3])
def test_it_is_token_packer(scale):
    options = {"width": WIDTH, "heads": HEADS, "scale": scale}
    compare_function(made("token_packer", SIDE**2, **options), reference(scale), BOUND)
