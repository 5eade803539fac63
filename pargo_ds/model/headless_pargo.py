"""ParGo without the head of its LLM, as `AutoModel` makes it: what programs build that put a head of
their own behind it, as vLLM's Transformers back end does.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers.utils import ModelOutput

from .backbone_pargo import ParGoBackbone
from .configuration_pargo import ParGoConfig
from .modeling_pargo import ParGoForConditionalGeneration


class TableOfWords(nn.Embedding):
    """An embedding that reads ids beyond its table as word 0, for callers who put image tokens over the
    result.

    A class and not a module around the table, because vLLM puts its own embedding below a class (its
    `replace_embedding_class`), and in the place of a module.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows `(..., dim)` of the ids `(...)`."""
        return super().forward(input.masked_fill(input >= self.num_embeddings, 0))


class ParGoModel(ParGoForConditionalGeneration):
    """Takes what ParGoForConditionalGeneration takes, and returns the LLM's output with
    `last_hidden_state` `(rows, tokens, llm_dim)` in place of logits.

    Its weights have the names that they have in the whole model, so the same files fit; those of the
    head are not looked at.
    """

    # No name stands for a part of the file: vLLM would cut "llm." off, under which modules lie here.
    base_model_prefix = ""

    def __init__(self, config: ParGoConfig, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.llm.set_output_embeddings(None)
        # Private in transformers 4.57 to 5.24: loading would tie a head that is not there.
        for model in (self, self.llm):
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}  # type: ignore[assignment]  # nn.Module knows tensors only
        words = cast("nn.Embedding", self.get_input_embeddings())
        if config.image_token_id >= words.num_embeddings:
            words.__class__ = type(TableOfWords.__name__, (TableOfWords, type(words)), {})

    @classmethod
    def can_generate(cls) -> bool:
        """False: there are no logits."""
        return False

    def forward(  # type: ignore[override]  # hidden states in place of logits
        self, *args: Any, return_dict: bool | None = None, **kwargs: Any
    ) -> ModelOutput | tuple[Any, ...]:
        """The LLM's output without its head, of the arguments of ParGoBackbone.

        Args:
            return_dict: False gives a tuple of what is not None, hidden states first.
            kwargs: what ParGoBackbone does not know goes on to the LLM and its attention.
        """
        output = cast("ModelOutput", ParGoBackbone(self)(*args, **kwargs))
        return output.to_tuple() if return_dict is False else output
