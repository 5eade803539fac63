"""ParGo as a Hugging Face model: images -> vision -> projector -> visual tokens among word
embeddings -> LLM -> loss.

Axis legend: ids, labels and positions are `(rows, tokens)`; a packed batch has one row and
`cu_seqlens`, int32 `(samples + 1,)`; pixels are `(images, 3, height, width)` for all images of all
rows, in order of appearance.

Sizes come from the configuration and every part is called as a module, so that ZeRO-3 can gather
its weights; each forward with images runs vision, projector, LLM and head once on every rank.
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig

from .attention import AttentionChoice
from .backbone_pargo import ParGoBackbone
from .configuration_pargo import ParGoConfig
from .flash import check_installed
from .fusion_pargo import ParGoFusion
from .generation_pargo import ParGoGenerationMixin
from .generation_settings import taken_over
from .llm import DecoderOutput, decoder_of, run_llm, run_packed_llm
from .loss_pargo import with_logits, with_loss
from .outputs_pargo import ParGoOutput, one_cache
from .packed_attention import NAME as PACKED_ATTENTION
from .packed_attention import LLMAttention, packed_positions, use_packed_attention
from .packing import Packing, prove_packing
from .places import Places, find_places, find_targets
from .projectors import build_projector
from .vision import VisionTower, reset_non_persistent_buffers


class ParGoForConditionalGeneration(PreTrainedModel, ParGoFusion, ParGoGenerationMixin):
    """Vision encoder `vision`, `projector` (ParGo's partial-global one, or a rival) and causal LM
    `llm` (state-dict prefixes of the same names).

    Prebuilt (pretrained) parts may be given; they are used as they are, never initialised again.
    """

    config: ParGoConfig
    generation_config: GenerationConfig
    config_class = ParGoConfig  # type: ignore[assignment]  # transformers says None here
    base_model_prefix = "llm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]  # type: ignore[assignment]  # and here

    def __init__(
        self,
        config: ParGoConfig,
        vision: VisionTower | None = None,
        llm: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        for part in (vision, llm):
            if part is not None:
                _mark_initialised(part)
        if vision is None:
            vision = VisionTower(config.vision_config)
        self.vision = vision
        self.projector = build_projector(
            config.projector_config,
            vision_dim=config.vision_config.hidden_size,
            llm_dim=config.text_config.hidden_size,
            num_patches=config.vision_config.num_patches,
        )
        if llm is None:
            # The LLM's config may name another dtype than the one that from_pretrained was asked
            # for.
            self.llm: PreTrainedModel = AutoModelForCausalLM.from_config(
                config.text_config, dtype=torch.get_default_dtype()
            )
        else:
            self.llm = llm
            assert llm.generation_config is not None  # every causal LM has one
            self.generation_config = taken_over(llm.generation_config)
        use_packed_attention(self.llm)
        # generate() makes the masks of static caches from the configuration, which a given LLM does
        # not share.
        config.text_config._attn_implementation = self.llm.config._attn_implementation
        self.attention = AttentionChoice()
        self._packings: dict[tuple[int, int], Packing] = {}
        self._no_split_modules = [
            *self.projector.layer_classes,
            *(self.llm._no_split_modules or []),
        ]
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False, so that transformers 5 lets the LLM's own class fill buffers that no file
        holds (Falcon-H1's multipliers were uninitialised memory). What custom code risks, new
        values in loaded weights, cannot happen here: all initialisation goes through torch.nn.init,
        which transformers guards.
        """
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise projector modules; encoder and LLM bring their own initialisation."""
        reset_non_persistent_buffers(module)
        # What ZeRO-3 has partitioned was initialised at birth.
        partitioned = any(p.numel() == 0 for p in module.parameters(recurse=False))
        ours = any(module is part for part in self.projector.modules())
        reset = getattr(module, "reset_parameters", None)
        if ours and not partitioned and reset is not None:
            reset()

    def set_attention(
        self,
        partial: str = "auto",
        cascade: str = "auto",
        provider: str = "auto",
        llm: str = "auto",
    ) -> None:
        """Choose how attention is computed from now on, in words of AttentionChoice. This changes
        speed and memory, never numbers, so it is a choice of the run and not saved with the model.

        Raises:
            ValueError: an unknown word, a provider that is not installed, or a road for packed rows
                in an LLM that keeps its own attention.
        """
        implementation = self.llm.config._attn_implementation
        if llm != "auto" and implementation != PACKED_ATTENTION:
            raise ValueError(
                f"attention.llm is '{llm}' but the LLM computes attention with '{implementation}'; load it with "
                "attn_implementation sdpa, or set attention.llm: auto"
            )
        self.attention = AttentionChoice(partial, cascade, provider, llm)
        check_installed(provider)
        self.projector.set_attention(self.attention)

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], **kwargs: Any
    ) -> None:
        """Make transformers' choice for encoder and LLM: one word, or a dict with `vision_config`
        and `text_config`.

        Raises:
            ValueError: a word that transformers does not know.
        """
        by_part = attn_implementation
        if isinstance(by_part, str):
            by_part = dict.fromkeys(("", "text_config", "vision_config"), by_part)
        # transformers looks for the encoder among its own models, in which the tower is none.
        encoder = by_part.get("vision_config")
        known = ("eager", *AttentionInterface().valid_keys())
        if encoder not in (None, *known):
            raise ValueError(
                f'Specified `attn_implementation="{encoder}"` is not supported for vision_config: choose one of '
                f"{', '.join(known)}"
            )
        super().set_attn_implementation(
            {k: v for k, v in by_part.items() if k != "vision_config"}, **kwargs
        )
        backbone: Any = self.vision.backbone
        if encoder is not None and hasattr(backbone, "set_attn_implementation"):
            backbone.set_attn_implementation(encoder, **kwargs)
        elif encoder is not None and isinstance(
            getattr(backbone, "config", None), PretrainedConfig
        ):
            # In transformers 4 the encoder inside of CLIP and SigLIP is a plain module that reads
            # its configuration.
            backbone.config._attn_implementation = encoder
        if encoder is not None:
            self.config.vision_config._attn_implementation = encoder
        use_packed_attention(self.llm)
        self._packings.clear()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.llm.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return decoder_of(self.llm)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the vision encoder for "image", else the model itself, as transformers 5 does for
        models that encode neither text nor sound apart. Its own search would go round through
        `base_model` for ever.
        """
        if modality == "image":
            return self.vision
        return self

    @property
    def language_model(self) -> nn.Module:
        """The LLM without its head, by the name that other vision-language models have for it."""
        return self.get_decoder()

    @property
    def base_model(self) -> ParGoBackbone:  # type: ignore[override]  # it is called like a module
        """The whole model without the LLM's head, to be called."""
        return ParGoBackbone(self)

    @property
    def model(self) -> ParGoBackbone:
        """What transformers 4's vision-language models call `base_model`."""
        return ParGoBackbone(self)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Checkpoint the projector's and the LLM's layers; non-reentrant unless told otherwise.

        Reentrant checkpoints drop gradients when only parameters, not inputs, need them.
        """
        if gradient_checkpointing_kwargs is None:
            gradient_checkpointing_kwargs = {"use_reentrant": False}
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        cache: Cache | None = None,
        image_mask: torch.Tensor | None = None,
        places: Places | None = None,
        return_logits: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ParGoOutput | tuple[Any, ...]:
        """Compute the logits, and the loss over answers when labels are given.

        Args:
            input_ids: `(rows, tokens)`; each image is a run of `config.visual_tokens` image tokens.
            labels: aligned with input_ids (shifted in here), IGNORE_INDEX where there is no target;
                the image token is none.
            pixel_values: `(images, 3, height, width)`, uint8 raw or float normalised. With 0 images
                the encoder and projector still run once, on a blank image whose tokens are
                multiplied by zero (ZeRO-3 gathers are collective). None: no vision at all.
            cu_seqlens: sample boundaries of a packed row `(samples + 1,)`; position_ids must
                restart at each of them (made here when None) and attention_mask must be None.
            max_seqlen: longest sample of the pack; only flash attention asks for it.
            logits_to_keep: last positions (int, 0 = all) or an index tensor along the tokens.
            past_key_values, cache: keys and values of earlier tokens, by the old and the new name.
                Of more images than the new tokens of one row hold, the last ones are taken.
            inputs_embeds: `(rows, tokens, llm_dim)` in place of input_ids; merge_images makes them.
            image_mask: `(rows, tokens)` bool, where visual tokens go; None: where the image token
                is.
            places: what `places` gave for this packed batch, in place of labels: with them nothing
                here makes the host wait for a GPU, and the batch is not checked again.
            return_logits: False with labels saves memory: the head runs at target positions only,
                and logits are None.
            return_dict: False gives a tuple of what is not None; None: as the configuration says.
            num_items_in_batch: divisor of the summed loss, the targets of the global batch; None:
                targets seen here.

        Raises:
            ValueError: images and placeholders do not match, or a packed batch with a mask, a cache
                or positions that do not restart.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        llm_inputs = self._llm_inputs(
            input_ids, attention_mask, position_ids, one_cache(past_key_values, cache), inputs_embeds, pixel_values,
            cu_seqlens, max_seqlen, use_cache, image_mask, places,
        ) | kwargs  # fmt: skip
        sought = self._sought(labels, cu_seqlens, places)
        outputs = self.run_decoder(llm_inputs)
        if sought is None:
            output = with_logits(self.llm, outputs, logits_to_keep)
        else:
            wanted = logits_to_keep if return_logits else None
            output = with_loss(self.llm, outputs, *sought, num_items_in_batch, wanted)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        if return_dict:
            return output
        return output.to_tuple()

    def _sought(
        self,
        labels: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        places: Places | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The positions whose logits enter the loss, and their targets; None without a loss."""
        if places is not None:
            return places.kept, places.targets
        if labels is not None:
            return find_targets(labels, cu_seqlens, self.config.image_token_id)
        return None

    def places(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> Places:
        """Find where images and targets stand in a packed batch, for `forward`. On tensors of the
        CPU nothing waits for a GPU.

        Raises:
            ValueError: positions or boundaries that `forward` would refuse.
        """
        packed_positions(cu_seqlens, position_ids, None, None, None, max_seqlen)
        return find_places(input_ids, labels, cu_seqlens, self.config.image_token_id)

    def packing(self, longest: int, row: int | None = None) -> Packing:
        """Return the exact road of packed rows of `row` tokens whose longest sample has `longest`
        (packing.py); a row may be one sample.

        Raises:
            PackingError: there is none for this LLM.
        """
        asked = (longest, max(longest, row or 0))
        # What was proven with long samples in the pack holds for packs without them.
        for proven in sorted(self._packings):
            if asked[0] <= proven[0] and asked[1] <= proven[1]:
                return self._packings[proven]
        implementation = self.llm.config._attn_implementation
        found = prove_packing(self.config.text_config, *asked, implementation=implementation)
        self._packings[asked] = found
        return found

    def run_decoder(self, llm_inputs: dict[str, Any]) -> DecoderOutput:
        """Run the LLM without its head on what `_llm_inputs` gave; `last_hidden_state` is `(rows,
        tokens, llm_dim)`.
        """
        cu_seqlens = llm_inputs.pop("cu_seqlens", None)
        longest = llm_inputs.pop("max_seqlen", None)
        if cu_seqlens is None:
            return run_llm(self.llm, **llm_inputs)
        if longest is None:
            longest = int(cu_seqlens.diff().max())
        return run_packed_llm(
            self.llm,
            cu_seqlens=cu_seqlens,
            longest=longest,
            road=self.packing(longest, row=llm_inputs["inputs_embeds"].shape[1]).road,
            attention=LLMAttention(self.attention.llm, self.attention.provider),
            **llm_inputs,
        )


def _mark_initialised(module: nn.Module) -> None:
    """Tell transformers that a prebuilt part has its weights already."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]  # nn.Module knows tensors only
