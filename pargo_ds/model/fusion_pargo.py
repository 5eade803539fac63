"""Insert visual tokens into word embeddings, and make the inputs of the LLM of them.

Axis legend: ids and `is_image` are `(rows, tokens)`, embeddings `(rows, tokens, llm_dim)`; pixels
are `(images, 3, height, width)` for all images of all rows, in order of appearance.
"""

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_pargo import ParGoConfig
from .llm import embedding_scale
from .outputs_pargo import cache_argument, cached_length
from .packed_attention import packed_positions
from .places import Places, flat_places
from .projectors import Projector
from .vision import VisionTower


class ParGoFusion:
    """The part of a model that handles images before the LLM runs; it uses `vision`, `projector`,
    `llm` and `config`.
    """

    config: ParGoConfig
    vision: VisionTower
    projector: Projector
    llm: PreTrainedModel

    if TYPE_CHECKING:

        def get_input_embeddings(self) -> nn.Module: ...

        def get_decoder(self) -> nn.Module: ...

    @overload
    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: Literal[False] = False
    ) -> torch.Tensor: ...

    @overload
    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: Literal[True]
    ) -> BaseModelOutputWithPooling: ...

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool = False
    ) -> torch.Tensor | BaseModelOutputWithPooling:
        """Compute the visual tokens `(images, tokens, llm_dim)` of images `(images, 3, height,
        width)`.

        return_dict: an output as transformers 5 has it for other models, the visual tokens as
        `pooler_output`, the encoder's features `(images, patches, vision_dim)` as
        `last_hidden_state`.
        """
        features = self.vision(pixel_values)
        tokens = self.projector(features.to(_float_dtype(self.projector)))
        if return_dict:
            return BaseModelOutputWithPooling(features, tokens)
        return tokens

    def merge_images(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the word embeddings with the visual tokens in their places, for `forward` and
        `generate` as `inputs_embeds`.

        Args:
            input_ids: `(rows, tokens)`; each image is a run of `config.visual_tokens` image tokens.
            pixel_values: `(images, 3, height, width)`, all images of all rows in order of
                appearance.

        Returns `(rows, tokens, llm_dim)`.

        Raises:
            ValueError: images and placeholders do not match.
        """
        return self._embed(input_ids, pixel_values, check=True)

    def _llm_inputs(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past: Cache | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        max_seqlen: int | None,
        use_cache: bool | None,
        image_mask: torch.Tensor | None,
        places: Places | None,
    ) -> dict[str, Any]:
        """Keyword arguments of `run_decoder`, for those of `forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        packed: dict[str, Any] = {}
        if cu_seqlens is not None:
            if places is None:
                position_ids = packed_positions(
                    cu_seqlens, position_ids, attention_mask, past, use_cache, max_seqlen
                )
            use_cache = None  # with a cache transformers would not see the sample boundaries
            packed = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if input_ids is not None:
            if image_mask is not None:
                input_ids = input_ids.masked_fill(image_mask, self.config.image_token_id)
            images = None if places is None else places.images
            inputs_embeds = self._embed_step(input_ids, pixel_values, cached_length(past), images)
        elif inputs_embeds is not None and pixel_values is not None:
            if image_mask is None:
                image_mask = self._image_places(inputs_embeds)
            images = flat_places(image_mask)
            self._check_placeholders(images.numel(), pixel_values.shape[0])
            inputs_embeds = self._place_images(inputs_embeds, images, pixel_values)
        return {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            cache_argument(type(self.get_decoder())): past,  # type: ignore[arg-type]  # it hashes
            "use_cache": use_cache,
            **packed,
        }

    def _embed_step(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        cached: int,
        images: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of the tokens after `cached` ones, `(rows, tokens, llm_dim)`."""
        if cached and input_ids.shape[1] == 1:  # one generated token
            return self._embed(input_ids, None, check=False)
        if cached and pixel_values is not None and input_ids.shape[0] == 1:
            # In a continued conversation the processor gives all images, and the cache has the
            # first ones already.
            new = int((input_ids == self.config.image_token_id).sum()) // self.config.visual_tokens
            pixel_values = pixel_values[-new:] if new else None
        return self._embed(input_ids, pixel_values, check=True, images=images)

    def _embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        check: bool,
        images: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Word embeddings with the visual tokens in their places, `(rows, tokens, llm_dim)`.

        `images` `(visual tokens,)`: those places in the flattened ids; None: where the image token
        is, for which the host waits.
        """
        is_image = input_ids == self.config.image_token_id
        # The image token may be outside the vocabulary, so look up another id in its place.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        num_images = 0 if pixel_values is None else pixel_values.shape[0]
        if images is None and (check or num_images):
            images = flat_places(is_image)
        if check and images is not None:
            self._check_placeholders(images.numel(), num_images)
        if pixel_values is None or images is None:
            return embeds
        if num_images == 0:
            blank = pixel_values.new_zeros((1, *pixel_values.shape[1:]))
            return embeds + 0 * self.get_image_features(blank).float().sum().to(embeds.dtype)
        return self._place_images(embeds, images, pixel_values)

    def _place_images(
        self, embeds: torch.Tensor, images: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        tokens = self.get_image_features(pixel_values).to(embeds.device, embeds.dtype)
        scale = embedding_scale(self.llm)
        if isinstance(scale, torch.Tensor) or scale != 1.0:
            tokens = tokens * torch.as_tensor(scale, dtype=tokens.dtype, device=tokens.device)
        placed = embeds.flatten(0, 1).index_copy(0, images, tokens.flatten(0, 1))
        return placed.view_as(embeds)  # (rows, tokens, llm_dim)

    def _image_places(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return where embeddings are those of the image token, `(rows, tokens)` bool. Prompt
        tuning needs this, because it embeds words itself.
        """
        token, vocabulary = self.config.image_token_id, self.config.text_config.vocab_size
        if token >= vocabulary:
            raise ValueError(
                f"pixel_values came with inputs_embeds, but the image token {token} lies outside the LLM's vocabulary "
                f"of {vocabulary}, so its embedding cannot be found there; give image_mask (rows, tokens), or call "
                f"resize_token_embeddings({token + 1}) first"
            )
        wanted = self.get_input_embeddings()(torch.tensor([token], device=embeds.device))
        return (embeds == wanted.to(embeds.dtype)).all(-1)

    def _check_placeholders(self, found: int, num_images: int) -> None:
        per_image = self.config.visual_tokens
        if found != num_images * per_image:
            raise ValueError(
                f"{found} image tokens (id {self.config.image_token_id}) in input_ids but {num_images} images of "
                f"{per_image} visual tokens each: expected {num_images * per_image}. Each image needs one <image> in "
                "the text, and the processor's visual_tokens must equal the model's"
            )


def _float_dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())
