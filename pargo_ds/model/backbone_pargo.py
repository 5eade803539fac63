"""A ParGo model without the head of its LLM, for trainers that compute the loss themselves."""

from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache

from .llm import DecoderOutput
from .outputs_pargo import one_cache
from .places import Places


class WholeModel(Protocol):
    """The methods of a ParGo model that this file calls."""

    def _llm_inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]: ...

    def run_decoder(self, llm_inputs: dict[str, Any]) -> DecoderOutput: ...


class ParGoBackbone:
    """A ParGo model without the head of its LLM: called with what the model takes, it gives
    `last_hidden_state` `(rows, tokens, llm_dim)`. Trainers that compute the loss in pieces call it
    (`model.base_model`, `model.model`).

    What else it is asked for is the model's.
    """

    def __init__(self, whole: WholeModel) -> None:
        self._whole = whole

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        image_mask: torch.Tensor | None = None,
        places: Places | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        whole = self._whole
        llm_inputs = whole._llm_inputs(
            input_ids, attention_mask, position_ids, one_cache(past_key_values, cache), inputs_embeds, pixel_values,
            cu_seqlens, max_seqlen, use_cache, image_mask, places,
        )  # fmt: skip
        return whole.run_decoder(llm_inputs | kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)
