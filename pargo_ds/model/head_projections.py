"""Multi-head attention's projections, shared by the projectors that attend.

Axis legend: queries `(images, tokens, width)`; source `(images, seen, source_dim)`.
"""

import torch
import torch.nn.functional as F
from torch import nn


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless all heads can be equally wide."""
    if width % heads:
        raise ValueError(f"projector.width {width} is not a multiple of projector.heads {heads}")


class HeadProjections(nn.Module):
    """Query, key, value and output projections.

    The key has no bias: it would add the same number to a row's scores and cancel in the softmax.
    (Published ones that have it compute the same, whatever its values.)

    Args:
        width: of the queries and of the result.
        source_dim: of what is attended to.
        heads, head_dim: `head_dim` None means width / heads.
        bias: of query, value and output.
    """

    def __init__(
        self,
        width: int,
        source_dim: int,
        heads: int,
        head_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        if head_dim is None:
            head_dim = width // heads
        self.head_dim = head_dim
        inner = self.heads * self.head_dim
        self.query = nn.Linear(width, inner, bias=bias)
        self.key = nn.Linear(source_dim, inner, bias=False)
        self.value = nn.Linear(source_dim, inner, bias=bias)
        self.output = nn.Linear(inner, width, bias=bias)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """Divide `(images, tokens, heads * head_dim)` into `(images, heads, tokens, head_dim)`."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Project `(images, heads, tokens, head_dim)` to `(images, tokens, width)`."""
        return self.output(x.transpose(1, 2).flatten(2))

    def attend(
        self, queries: torch.Tensor, source: torch.Tensor, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let every query look at the whole source. `values`: what is taken from it, where that is
        not the source itself.
        """
        if values is None:
            values = source
        q, k = self.split(self.query(queries)), self.split(self.key(source))
        v = self.split(self.value(values))
        return self.merge(F.scaled_dot_product_attention(q, k, v))
