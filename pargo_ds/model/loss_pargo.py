"""Logits and loss of what the LLM gives without its head.

Axis legend: hidden states are `(rows, tokens, llm_dim)`; `kept` and `targets` `(targets,)` are
positions in the flattened `(rows * tokens,)` and the tokens that follow there.
"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .llm import DecoderOutput, final_logits
from .outputs_pargo import ParGoOutput, output_of


def with_logits(
    llm: PreTrainedModel, outputs: DecoderOutput, logits_to_keep: int | torch.Tensor
) -> ParGoOutput:
    """Return the output with logits at `logits_to_keep`: the last positions (int, 0 = all), or an
    index tensor along the tokens.
    """
    kept = outputs.last_hidden_state[:, _positions(logits_to_keep)]
    return output_of(outputs, logits=final_logits(llm, kept))


def with_loss(
    llm: PreTrainedModel,
    outputs: DecoderOutput,
    kept: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None,
    logits_to_keep: int | torch.Tensor | None,
) -> ParGoOutput:
    """Return the output with the summed cross-entropy over `targets`, divided by
    `num_items_in_batch` (None: by their number).

    Without logits_to_keep the head runs at the positions `kept` only, and the output has the number
    of targets in place of logits.
    """
    num_targets = kept.numel()
    # The head must run without a target too: under ZeRO-3 the other ranks gather its weights now.
    rows = kept if num_targets else kept.new_zeros(1)
    hidden = outputs.last_hidden_state
    kept_logits = None
    if logits_to_keep is None:
        # 2-D rows: a 3-D input makes matmul copy the whole head (on a CPU 1.3 instead of 0.5 s a
        # step).
        logits = final_logits(llm, hidden.flatten(0, 1).index_select(0, rows))
    else:
        everywhere = final_logits(llm, hidden)  # (rows, tokens, vocabulary)
        logits = everywhere.flatten(0, 1).index_select(0, rows)
        kept_logits = everywhere[:, _positions(logits_to_keep)]
    if num_targets == 0:
        loss = 0 * logits.float().sum()
    else:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, targets, reduction="sum")
        if num_items_in_batch is None:
            num_items_in_batch = num_targets
        loss = total / num_items_in_batch
    counted = None
    if logits_to_keep is None:
        counted = torch.full((), num_targets, device=hidden.device)  # no copy from the host
    return output_of(outputs, loss=loss, logits=kept_logits, num_targets=counted)


def _positions(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    if isinstance(logits_to_keep, int):
        return slice(-logits_to_keep, None)
    return logits_to_keep
