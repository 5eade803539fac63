"""The Perceiver resampler beside transformers' Idefics: Flamingo's with another activation."""

from __future__ import annotations

from projector_oracles import BOUND, LLM_DIM, VISION_DIM, by_prefix, compare_modules, made
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler


class Oracle(nn.Module):
    def __init__(self, layers: int):
        super().__init__()
        config = IdeficsConfig(
            vision_config={"embed_dim": VISION_DIM},
            perceiver_config={"qk_layer_norms_perceiver": False},
        )
        self.resampler = IdeficsPerceiverResampler(config, VISION_DIM, layers, 2, 8, 5)
        for _, mlp in self.resampler.blocks:
            mlp.act = nn.GELU()  # Flamingo's and OpenFlamingo's; Idefics has a ReLU
        self.output = nn.Linear(VISION_DIM, LLM_DIM)

    def forward(self, patches):
        return self.output(self.resampler(patches))


def test_it_is_flamingos_resampler():
    layers = 3
    projector = made("resampler", tokens=5, layers=layers, heads=2, head_dim=8)
    pairs = {"latents": "", "final_norm": "resampler.layer_norm", "output": "output"}
    for n in range(layers):
        ours, attention, mlp = (
            f"layers.{n}",
            f"resampler.blocks.{n}.0",
            f"resampler.blocks.{n}.1",
        )
        pairs[f"{ours}.patch_norm"] = f"{attention}.context_layer_norm"
        pairs[f"{ours}.latent_norm"] = f"{attention}.latents_layer_norm"
        for mine, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "output")):
            pairs[f"{ours}.heads.{mine}"] = f"{attention}.{other}_proj"
        pairs |= {f"{ours}.ffn.0": f"{mlp}.ln", f"{ours}.ffn.1": f"{mlp}.fc"}
        pairs[f"{ours}.ffn.3"] = f"{mlp}.c_proj"
    names = by_prefix(pairs, projector) | {"latents.weight": "resampler.latents"}
    compare_modules(projector, Oracle(layers), names, BOUND)
