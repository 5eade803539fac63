"""Learned tokens, and the output layer of every projector, which writes the visual tokens.

With `soft_prompt` (ours, docs/learning.md) the last Linear starts at zero and is added to a learned
vector for each token.

Axis legend: features `(images, tokens, in_features)`; visual tokens `(images, tokens, llm_dim)`.
"""

import torch
from torch import nn

from .projectors import ProjectorConfig


class TokenTable(nn.Module):
    """Learned vectors `(tokens, width)`, drawn from a normal of `std`.

    An own module, so that ZeRO-3 gathers it when it is called and `_init_weights` can find it.
    """

    def __init__(self, num_tokens: int, width: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, num_images: int) -> torch.Tensor:
        return self.weight.unsqueeze(0).expand(num_images, -1, -1)  # (images, tokens, width)


class ScaledLinear(nn.Linear):
    """Linear whose output has a standard deviation of about `output_std` for inputs of unit
    variance.

    Visual tokens then enter the LLM at the scale of its word embeddings: without this the loss
    first rose (6.8 to 8.1) in trials with a small frozen LLM.
    """

    def __init__(self, in_features: int, out_features: int, output_std: float) -> None:
        self.output_std = output_std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.output_std * self.in_features**-0.5)
        nn.init.zeros_(self.bias)


class ZeroLinear(nn.Linear):
    """Linear that gives zeros at the start.

    One of them lies on each way from the image to the visual tokens, because a frozen LLM reads
    whatever the projector says from the first step on: tokens that begin with random
    image-dependent parts are noise to it (docs/learning.md; Flamingo's zero gates do the same). Two
    on one way would hold each other at zero.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class VisualTokenOutput(nn.Module):
    """The end of a projector with a soft prompt (ours): scale x (W features + learned vectors), W
    zero at the start.

    The learned vectors `(tokens, llm_dim)` are what no image changes, the soft prompt of Lester et
    al. (arXiv 2104.08691); they begin as Gaussian vectors of the deviation of the LLM's word
    embeddings, which is `scale`. The fixed factor makes weights and learning rates independent of
    the LLM's embeddings, and keeps this layer's gradient in proportion to the others' when
    gradients are clipped.
    """

    def __init__(
        self,
        config: ProjectorConfig,
        num_tokens: int,
        in_features: int,
        llm_dim: int,
        mixing: nn.Module,
    ) -> None:
        super().__init__()
        self.scale = config.output_std
        self.linear = ZeroLinear(in_features, llm_dim, bias=False)
        self.mixing = mixing
        self.soft_prompt = TokenTable(num_tokens, llm_dim, std=1.0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        said = self.mixing(self.linear(features))
        return self.scale * (said + self.soft_prompt(features.shape[0]))


def token_output(
    config: ProjectorConfig,
    num_tokens: int,
    in_features: int,
    llm_dim: int,
    mixing: nn.Module | None = None,
) -> nn.Module:
    """Make what writes the visual tokens of a projector, `(images, tokens, llm_dim)` of features
    `(images, tokens, in_features)`.

    `mixing`: a module on `(images, tokens, llm_dim)` behind the Linear, which maps zeros to zeros
    at the start.
    """
    if config.soft_prompt:
        if mixing is None:
            mixing = nn.Identity()
        return VisualTokenOutput(config, num_tokens, in_features, llm_dim, mixing)
    linear = ScaledLinear(in_features, llm_dim, config.output_std)
    if mixing is None:
        return linear
    return nn.Sequential(linear, mixing)
