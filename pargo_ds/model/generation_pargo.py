"""Generation with images: transformers' `generate` in all its modes, on prompts that hold image
tokens.

Axis legend: prompt ids and `image_mask` are `(rows, tokens)`; `pixel_values` are `(images, 3,
height, width)` for all images of all rows, in order of appearance. `image_mask` says which prompt
tokens are visual tokens.

An image token that lies outside the LLM's vocabulary never reaches transformers' logits processors
and candidate generators, which index logits and embeddings by the ids of the prompt: while
`generate` runs, each one is a stand-in, the first word of its row. That id is in the prompt anyway,
so a repetition penalty changes nothing by it.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.generation.streamers import BaseStreamer

from .configuration_pargo import ParGoConfig
from .outputs_pargo import cached_length


class ParGoGenerationMixin(GenerationMixin):
    """`generate`, and what it asks a model for at each step; needs `config.image_token_id` and
    `visual_tokens`.
    """

    config: ParGoConfig
    llm: PreTrainedModel

    if TYPE_CHECKING:

        def _image_places(self, embeds: torch.Tensor) -> torch.Tensor: ...

    @wraps(GenerationMixin.generate)
    def generate(  # type: ignore[override]  # what follows the configuration is handed on as it is
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run transformers' `generate`; the image token is never generated.

        Raises:
            ValueError: images and placeholders do not match.
        """
        if not self._takes_common_cache():
            kwargs["use_cache"] = (
                False  # each token costs a forward over all before it, the answer is the same
            )
        inside = self.config.image_token_id < self.config.get_text_config().vocab_size
        if inside:
            generation_config = self._without_image_token(generation_config, kwargs)
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if (
            inputs is None
            and kwargs.get("inputs_embeds") is not None
            and kwargs.get("pixel_values") is not None
        ):
            kwargs.setdefault("image_mask", self._image_places(kwargs["inputs_embeds"]))
        if (
            inputs is None or "image_mask" in kwargs
        ):  # a draft for another model's generate has its ids prepared
            return super().generate(inputs, generation_config, *args, **kwargs)
        kwargs["image_mask"] = inputs == self.config.image_token_id
        if inside:
            return super().generate(inputs, generation_config, *args, **kwargs)
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = _PromptAsAsked(kwargs["streamer"], inputs)
        known = _with_stand_ins(inputs, kwargs["image_mask"], kwargs.get("attention_mask"))
        return _with_prompt(super().generate(known, generation_config, *args, **kwargs), inputs)

    def _takes_common_cache(self) -> bool:
        """Whether transformers' own cache fits the LLM.

        State-space hybrids of transformers 4.57, MiniMax and Mamba keep states in classes of their
        own, or in one that does not count tokens.
        """
        # Not public; the same name from 4.57 to 5.24.
        supported = cast("Callable[[], bool]", self.llm._supports_default_dynamic_cache)
        if not supported():
            return False
        try:
            DynamicCache(config=self.config.get_text_config()).get_seq_length()
        except ValueError:
            return False
        return True

    def _without_image_token(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> GenerationConfig | None:
        """Suppress the image token by the means that generation has for that, in the configuration
        or in `kwargs`.
        """
        token = self.config.image_token_id
        if generation_config is None:
            known = kwargs.get("suppress_tokens", self.generation_config.suppress_tokens)
            kwargs["suppress_tokens"] = [*(known or []), token]
            return None
        # Settings beside a configuration are deprecated.
        settings = copy.deepcopy(generation_config)
        settings.suppress_tokens = [
            *(kwargs.pop("suppress_tokens", settings.suppress_tokens) or []),
            token,
        ]
        return settings

    def prepare_inputs_for_generation(  # type: ignore[override]  # transformers gives them by name
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the inputs of one generation step; images go in with the tokens that stand for
        them, once.

        Raises:
            ValueError: an image's tokens are divided over two steps (`prefill_chunk_size`).
        """
        if kwargs.get("past_key_values") is None and inputs_embeds is None:
            _cut_to_the_ids(kwargs, input_ids.shape[1])
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        image_token = self.config.image_token_id
        step_ids = inputs.get("input_ids")
        if step_ids is None:  # the user's own embeddings, first step
            if pixel_values is not None:
                inputs |= {"pixel_values": pixel_values, "image_mask": image_mask}
            return inputs
        if image_mask is None:
            image_mask = input_ids == image_token
        # Whoever drafts candidates may propose the image token; it is rejected, so any word does
        # for the look-up.
        step_ids = step_ids.masked_fill(step_ids == image_token, 0)
        start = input_ids.shape[1] - step_ids.shape[1]
        if input_ids.shape[1] < image_mask.shape[1]:  # a chunk of the prompt
            start += cached_length(kwargs.get("cache", kwargs.get("past_key_values")))
        if start < image_mask.shape[1]:
            here = image_mask[:, start : start + step_ids.shape[1]]
            here = F.pad(here, (0, step_ids.shape[1] - here.shape[1]))
            step_ids = step_ids.masked_fill(here, image_token)
            if pixel_values is not None and bool(here.any()):
                before = image_mask[:, :start].sum(1).tolist()
                inputs["pixel_values"] = self._images_of_step(
                    pixel_values, image_mask, before, here
                )
        inputs["input_ids"] = step_ids
        return inputs

    def _images_of_step(
        self,
        pixel_values: torch.Tensor,
        image_mask: torch.Tensor,
        before: list[int],
        here: torch.Tensor,
    ) -> torch.Tensor:
        """The images of a step's placeholders `here`, of all images of the prompt.

        `before`: visual tokens of each row that earlier steps have seen. When the number of images
        is not that of the whole prompt they are returned as they are, and `forward` compares the
        counts.
        """
        per_image = self.config.visual_tokens
        now, whole = here.sum(1).tolist(), image_mask.sum(1).tolist()
        if any(n % per_image for n in (*before, *now)):
            raise ValueError(
                f"the {per_image} tokens of an image are divided over two steps of generation; leave out "
                "prefill_chunk_size, or give a prompt whose chunks end between images"
            )
        if pixel_values.shape[0] * per_image != sum(whole):
            return pixel_values
        kept, first = [], 0
        for seen, count, total in zip(before, now, whole, strict=True):
            kept.append(
                pixel_values[first + seen // per_image : first + (seen + count) // per_image]
            )
            first += total // per_image
        return torch.cat(kept)

    # The next two are not public, but their names and arguments are the same from 4.57 to 5.24, and
    # there is no other place where an image can be given to each of several beams, or be kept from
    # an assistant that cannot see.

    def _expand_inputs_for_generation(  # type: ignore[override]  # a static method there
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Repeat rows for beams and return sequences; a row's images are repeated as one block."""
        pixels = kwargs.pop("pixel_values", None)
        places = kwargs.get("image_mask")
        if places is None and input_ids is not None:
            places = input_ids == self.config.image_token_id
        if pixels is not None and expand_size > 1 and places is not None:
            blocks = [pixels]  # one row: all are its own, those that its cache has seen included
            if places.shape[0] > 1:
                blocks = self._images_of_rows(pixels, places)
            repeated: list[torch.Tensor] = []
            for block in blocks:
                repeated += [block] * expand_size
            pixels = torch.cat(repeated)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **kwargs,
        )
        if pixels is not None:
            kwargs["pixel_values"] = pixels
        return input_ids, kwargs

    def _images_of_rows(
        self, pixel_values: torch.Tensor, image_mask: torch.Tensor
    ) -> list[torch.Tensor]:
        per_row = (image_mask.sum(1) // self.config.visual_tokens).tolist()
        if sum(per_row) != pixel_values.shape[0]:
            raise ValueError(
                f"the prompts hold {per_row} images, row by row, but pixel_values has {pixel_values.shape[0]}; each "
                "image needs one <image> in the text"
            )
        return list(pixel_values.split(per_row))

    def _get_candidate_generator(  # type: ignore[override]  # all but one are handed on as they are
        self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Who drafts candidates; an assistant that takes no images gets none (it drafts from the
        words alone).
        """
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not isinstance(assistant, ParGoGenerationMixin):
            model_kwargs = dict(model_kwargs)
            for name in ("pixel_values", "image_mask"):
                model_kwargs.pop(name, None)
        return super()._get_candidate_generator(
            *args,
            model_kwargs=model_kwargs,  # type: ignore[misc]  # transformers gives it by name
            **kwargs,
        )


class _PromptAsAsked(BaseStreamer):
    """A streamer whose first tokens are the prompt that the user gave."""

    def __init__(self, streamer: BaseStreamer, prompt: torch.Tensor) -> None:
        self.streamer = streamer
        self.prompt: torch.Tensor | None = prompt.cpu()

    def put(self, value: torch.Tensor) -> None:
        if self.prompt is not None:
            value, self.prompt = self.prompt, None
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()


def _with_stand_ins(
    ids: torch.Tensor, image_mask: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """`ids` with the first word of its row in place of each image token; 0 in a row that has no
    word.
    """
    words = ~image_mask
    if attention_mask is not None and attention_mask.shape == ids.shape:
        words = words & attention_mask.bool()
    first = ids.gather(1, words.int().argmax(1, keepdim=True))  # (rows, 1)
    first = first.masked_fill(~words.any(1, keepdim=True), 0)
    return torch.where(image_mask, first, ids)


def _with_prompt(found: Any, prompt: torch.Tensor) -> Any:
    """What `generate` returns, with the user's prompt at the beginning of each sequence."""
    sequences = getattr(found, "sequences", found)
    if isinstance(sequences, torch.Tensor) and sequences.shape[1] >= prompt.shape[1]:
        copies = sequences.shape[0] // prompt.shape[0]
        sequences[:, : prompt.shape[1]] = prompt.repeat_interleave(copies, 0)
    return found


def _cut_to_the_ids(kwargs: dict[str, Any], length: int) -> None:
    """Cut mask and positions to the tokens that there are. Where a rank waits for others under
    ZeRO-3 (`synced_gpus`) transformers lets them grow, and not the tokens; with a cache it cuts
    them itself.
    """
    for name in ("attention_mask", "position_ids", "cache_position"):
        value = kwargs.get(name)
        if isinstance(value, torch.Tensor) and value.ndim <= 2 and value.shape[-1] > length:
            kwargs[name] = value[..., :length]
