"""FlashAttention's rule for packed sequences in plain torch, differentiable in every dtype.

No FlashAttention runs on a CPU. There the words of a run file that ask for one are computed by this
file, so that such a run trains on a CPU with the same numbers.

The rule: row i of sq rows sees the keys `[i + sk - sq - left, i + sk - sq + right]`, inclusive, of
the sk keys of its sequence (aligned bottom-right). A negative side has no bound. A row that sees no
key is zero, as in the real kernels.

Axis legend: as flash.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]  # (rows, keys) of one sequence


class VarlenCall(NamedTuple):
    """What a FlashAttention is asked; `left` and `right` are -1 for a side without a bound."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    left: int
    right: int
    scale: float

    def with_repeated_keys(self) -> "VarlenCall":
        """Return the same call with a key head for every query head."""
        repeats = self.q.shape[1] // self.k.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (self.k, self.v))
        return self._replace(k=k, v=v)


def varlen_reference(call: VarlenCall) -> Tensor:
    """Compute the attention of each packed sequence to its own keys, `(tokens, heads, head_dim)`.

    Sequences of equal sizes are computed together.
    """
    q, k, v, cu_seqlens_q, cu_seqlens_k = call.with_repeated_keys()[:5]
    outputs, places = [], []
    for (sq, sk), members in _members_by_size(cu_seqlens_q, cu_seqlens_k).items():
        rows = _places(cu_seqlens_q, members, sq)
        columns = _places(cu_seqlens_k, members, sk)
        # (sequences, heads, sq or sk, head_dim)
        some_q = q[rows].unflatten(0, (len(members), sq)).transpose(1, 2)
        some_k = k[columns].unflatten(0, (len(members), sk)).transpose(1, 2)
        some_v = v[columns].unflatten(0, (len(members), sk)).transpose(1, 2)
        hidden = _hidden(sq, sk, call.left, call.right, q.device)
        scores = some_q @ some_k.transpose(-1, -2) * call.scale
        # The softmax of a row that sees no key is NaN; the second mask makes it zero.
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).masked_fill(hidden, 0.0)
        outputs.append((weights @ some_v).transpose(1, 2).flatten(0, 1))
        places.append(rows)
    own_order = torch.cat(places).argsort()
    return torch.cat(outputs)[own_order]


def _members_by_size(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> dict[Size, list[int]]:
    """The sequences of each size, by their places in cu_seqlens."""
    sizes = zip(cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist(), strict=True)
    members: dict[Size, list[int]] = {}
    for sequence, size in enumerate(sizes):
        members.setdefault(size, []).append(sequence)
    return members


def _places(cu_seqlens: Tensor, sequences: list[int], size: int) -> Tensor:
    """Places of the tokens of some sequences of one size, one sequence after another."""
    starts = cu_seqlens[sequences].long()
    return (starts[:, None] + torch.arange(size, device=cu_seqlens.device)).flatten()


def _hidden(sq: int, sk: int, left: int, right: int, device: torch.device) -> Tensor:
    """Where a row does not see a key, bool `(sq, sk)`."""
    rows = torch.arange(sq, device=device)[:, None] + sk - sq
    distance = torch.arange(sk, device=device) - rows
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden
