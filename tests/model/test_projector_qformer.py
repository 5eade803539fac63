"""The Q-Former beside transformers' BLIP-2."""

from __future__ import annotations

import torch
from projector_oracles import BOUND, LLM_DIM, VISION_DIM, by_prefix, compare_modules, made
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel


class Oracle(nn.Module):
    def __init__(self, layers: int):
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
            cross_attention_frequency=2, encoder_hidden_size=VISION_DIM, layer_norm_eps=1e-12,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.zeros(1, 5, 16))
        self.qformer = Blip2QFormerModel(config).eval()
        self.language_projection = nn.Linear(16, LLM_DIM)
        for name, parameter in self.qformer.named_parameters():
            if name.endswith("key.bias"):  # ours has none, because it changes nothing
                nn.init.normal_(parameter)

    def forward(self, patches):
        queries = self.queries.expand(patches.shape[0], -1, -1)
        found = self.qformer(query_embeds=queries, encoder_hidden_states=patches)
        return self.language_projection(found.last_hidden_state)


def test_it_is_blip_2s_q_former():
    layers = 3
    options = {"tokens": 5, "layers": layers, "width": 16, "heads": 2, "ffn_width": 32}
    projector = made("qformer", **options)
    pairs = {
        "queries": "queries",
        "query_norm": "qformer.layernorm",
        "output": "language_projection",
    }
    for n in range(layers):
        ours, theirs = f"layers.{n}", f"qformer.encoder.layer.{n}"
        for mine, other in (("self", "attention"), ("cross", "crossattention")):
            for part in ("query", "key", "value"):
                pairs[f"{ours}.{mine}_attention.{part}"] = f"{theirs}.{other}.attention.{part}"
            pairs[f"{ours}.{mine}_attention.output"] = f"{theirs}.{other}.output.dense"
            pairs[f"{ours}.{mine}_norm"] = f"{theirs}.{other}.output.LayerNorm"
        pairs[f"{ours}.ffn.0"] = f"{theirs}.intermediate_query.dense"
        pairs[f"{ours}.ffn.2"] = f"{theirs}.output_query.dense"
        pairs[f"{ours}.ffn_norm"] = f"{theirs}.output_query.LayerNorm"
    names = by_prefix(pairs, projector) | {"queries.weight": "queries"}
    compare_modules(projector, Oracle(layers), names, BOUND)
