"""The D-Abstractor beside Deformable DETR's decoder layers of transformers, put together as
Honeybee does.
"""

from __future__ import annotations

import math

import pytest
import torch
from projector_oracles import BOUND, LLM_DIM, VISION_DIM, by_prefix, compare_modules, made
from torch import nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoderLayer

from pargo_ds.model import build_projector, projector_config

LAYERS, WIDTH, HEADS, POINTS = 2, 16, 2, 3
OPTIONS = {
    "tokens": 9, "layers": LAYERS, "width": WIDTH, "heads": HEADS, "points": POINTS,
    "ffn_width": 32,
}  # fmt: skip


class Oracle(nn.Module):
    def __init__(self):
        super().__init__()
        config = DeformableDetrConfig(
            d_model=WIDTH, decoder_attention_heads=HEADS, decoder_ffn_dim=32,
            decoder_n_points=POINTS, num_feature_levels=1, dropout=0.0, disable_custom_kernels=True,
        )  # fmt: skip
        self.input = nn.Linear(VISION_DIM, WIDTH)
        self.v_pos_emb = nn.Parameter(torch.zeros(16, WIDTH))
        self.query = nn.Parameter(torch.zeros(9, WIDTH))
        self.reference_points = nn.Parameter(torch.zeros(9, 2))
        self.layers = nn.ModuleList(DeformableDetrDecoderLayer(config) for _ in range(LAYERS))
        self.output = nn.Linear(WIDTH, LLM_DIM)
        for layer in self.layers:  # ours has no bias of the key, because it changes nothing
            nn.init.normal_(layer.self_attn.k_proj.bias)

    def forward(self, patches):
        features = self.input(patches) + self.v_pos_emb
        grid = features.reshape(2, 4, 4, WIDTH).permute(0, 3, 1, 2)
        positions = nn.AdaptiveAvgPool2d(3)(grid).permute(0, 2, 3, 1).flatten(1, 2)
        queries = self.query.expand(2, -1, -1)
        reference = self.reference_points.expand(2, -1, -1)[:, :, None]
        for layer in self.layers:
            queries = layer(
                queries, position_embeddings=positions, encoder_hidden_states=features,
                reference_points=reference, spatial_shapes=torch.tensor([[4, 4]]),
                spatial_shapes_list=[(4, 4)], level_start_index=torch.tensor([0]),
            )[0]  # fmt: skip
        return self.output(queries)


def test_it_is_honeybees_d_abstractor():
    projector = made("d_abstractor", **OPTIONS)
    pairs = {"input": "input", "output": "output", "positions": "", "queries": "", "reference": ""}
    parts = {
        "self_attention.query": "self_attn.q_proj",
        "self_attention.key": "self_attn.k_proj",
        "self_attention.value": "self_attn.v_proj",
        "self_attention.output": "self_attn.out_proj",
        "self_norm": "self_attn_layer_norm",
        "patch_attention.offsets": "encoder_attn.sampling_offsets",
        "patch_attention.weights": "encoder_attn.attention_weights",
        "patch_attention.value": "encoder_attn.value_proj",
        "patch_attention.output": "encoder_attn.output_proj",
        "patch_attention_norm": "encoder_attn_layer_norm",
        "ffn.0": "fc1",
        "ffn.2": "fc2",
        "ffn_norm": "final_layer_norm",
    }
    for n in range(LAYERS):
        pairs |= {f"layers.{n}.{ours}": f"layers.{n}.{theirs}" for ours, theirs in parts.items()}
    names = by_prefix(pairs, projector) | {
        "positions.weight": "v_pos_emb",
        "queries.weight": "query",
        "reference.weight": "reference_points",
    }
    compare_modules(projector, Oracle(), names, BOUND)


def test_each_head_starts_in_a_direction_of_its_own_from_a_grid_of_points():
    config = projector_config({"type": "d_abstractor", **OPTIONS, "tokens": 4, "heads": 4})
    projector = build_projector(config, VISION_DIM, LLM_DIM, 16)
    offsets = projector.layers[0].patch_attention.offsets
    start = offsets.bias.detach().reshape(4, POINTS, 2)
    assert not offsets.weight.any()
    for head in range(4):
        direction = torch.tensor([math.cos(head * math.pi / 2), math.sin(head * math.pi / 2)])
        for point in range(POINTS):
            expected = (point + 1) * direction
            torch.testing.assert_close(start[head, point], expected, atol=1e-6, rtol=0)
    # Middles of the corner patches of a 4 x 4 grid, (x, y) in raster order.
    corners = [[0.125, 0.125], [0.875, 0.125], [0.125, 0.875], [0.875, 0.875]]
    torch.testing.assert_close(projector.reference.weight.detach(), torch.tensor(corners))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 16 is not a multiple of projector.heads 3"):
        projector_config({"type": "d_abstractor", "width": 16, "heads": 3})
