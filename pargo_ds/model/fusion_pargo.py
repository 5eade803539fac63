"""Visual tokens among word embeddings.

Axis legend: ids and `is_image` are `(rows, tokens)`, embeddings `(rows, tokens, llm_dim)`; pixels are
`(images, 3, height, width)` for all pictures of all rows, in order of appearance.
"""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .llm import embedding_scale


class ParGoFusion:
    """What a model with `vision`, `projector`, `llm` and their `config` does with pictures before the LLM runs."""

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool = False
    ) -> torch.Tensor | BaseModelOutputWithPooling:
        """Pictures `(images, 3, height, width)` -> visual tokens `(images, partial + global, llm_dim)`.

        return_dict: an output as transformers 5 has it for other models, the visual tokens as `pooler_output`, the
        encoder's features `(images, patches, vision_dim)` as `last_hidden_state`.
        """
        features = self.vision(pixel_values)
        tokens = self.projector(features.to(_float_dtype(self.projector)))
        return BaseModelOutputWithPooling(features, tokens) if return_dict else tokens

    def merge_pictures(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Word embeddings with the visual tokens in their places, for `forward` and `generate` as `inputs_embeds`.

        Args:
            input_ids: `(rows, tokens)`; each picture is a run of `config.visual_tokens` image tokens.
            pixel_values: `(images, 3, height, width)`, all pictures of all rows in order of appearance.

        Returns `(rows, tokens, llm_dim)`.

        Raises:
            ValueError: pictures and placeholders do not match.
        """
        return self._embed(input_ids, pixel_values, check=True)

    def _embed_step(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, cached: int) -> torch.Tensor:
        """Embeddings of the tokens after `cached` ones, `(rows, tokens, llm_dim)`."""
        if cached and input_ids.shape[1] == 1:  # one generated token
            return self._embed(input_ids, None, check=False)
        if cached and pixel_values is not None and input_ids.shape[0] == 1:
            # A conversation goes on: the processor gives all its pictures, the cache has seen the first ones.
            new = int((input_ids == self.config.image_token_id).sum()) // self.config.visual_tokens
            pixel_values = pixel_values[-new:] if new else None
        return self._embed(input_ids, pixel_values, check=True)

    def _embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, check: bool) -> torch.Tensor:
        """Word embeddings with the visual tokens in their places, `(rows, tokens, llm_dim)`."""
        is_image = input_ids == self.config.image_token_id
        # The image token need not be in the vocabulary; any known id does for the look-up.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        num_images = 0 if pixel_values is None else pixel_values.shape[0]
        if check:
            self._check_placeholders(int(is_image.sum()), num_images)
        if pixel_values is None:
            return embeds
        if num_images == 0:
            blank = pixel_values.new_zeros((1, *pixel_values.shape[1:]))
            return embeds + 0 * self.get_image_features(blank).float().sum().to(embeds.dtype)
        return self._place_pictures(embeds, is_image, pixel_values)

    def _place_pictures(self, embeds: torch.Tensor, is_image: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.get_image_features(pixel_values).to(embeds.device, embeds.dtype)
        tokens = tokens * torch.as_tensor(embedding_scale(self.llm), dtype=tokens.dtype, device=tokens.device)
        return embeds.masked_scatter(is_image.unsqueeze(-1), tokens)  # (rows, tokens, llm_dim)

    def _image_places(self, embeds: torch.Tensor) -> torch.Tensor:
        """Where embeddings are that of the image token, `(rows, tokens)` bool: prompt tuning embeds words itself."""
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
                f"{found} image tokens (id {self.config.image_token_id}) in input_ids but {num_images} pictures of "
                f"{per_image} visual tokens each: expected {num_images * per_image}. Each picture needs one <image> in "
                "the text, and the processor's visual_tokens must equal the model's"
            )


def _float_dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())
