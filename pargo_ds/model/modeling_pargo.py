"""ParGo as a Hugging Face model: pictures -> vision -> projector -> visual tokens among word embeddings -> LLM -> loss.

Axis legend: ids, labels and positions are `(rows, tokens)`; a packed batch has one row and `cu_seqlens`, int32
`(samples + 1,)`; pixels are `(images, 3, height, width)` for all pictures of all rows, in order of appearance.

Sizes come from the configuration and every part is called as a module, so that ZeRO-3 can gather its weights; each
forward with pictures runs vision, projector, LLM and head once on every rank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

# transformers 4.57 copies only the direct imports of a file of remote code, so its siblings' siblings stand here too.
from .attention import AttentionChoice
from .attention_table import PARTIAL  # noqa: F401
from .backbone_pargo import ParGoBackbone
from .configuration_pargo import IGNORE_INDEX, ParGoConfig
from .encoder_trial import try_out  # noqa: F401
from .flash import check_installed
from .fusion_pargo import ParGoFusion
from .generation_pargo import ParGoGenerationMixin
from .generation_settings import taken_over
from .groups import PatchGroups  # noqa: F401
from .kernels import fused_partial  # noqa: F401
from .llm import decoder_of, final_logits, run_llm, run_packed_llm
from .masks import partial_global_mask  # noqa: F401
from .outputs_pargo import ParGoOutput, cache_argument, cached_length, one_cache, output_of
from .packed_attention import NAME as PACKED_ATTENTION
from .packed_attention import LLMAttention, packed_positions, use_packed_attention
from .packing import Packing, prove_packing
from .partial_backends import BACKENDS  # noqa: F401
from .projector_adaptive_pool import AdaptivePoolProjector  # noqa: F401
from .projector_pargo import PargoProjector  # noqa: F401
from .projectors import build_projector
from .tiny_llm import tiny_config  # noqa: F401
from .vision import VisionTower, reset_non_persistent_buffers


class ParGoForConditionalGeneration(PreTrainedModel, ParGoFusion, ParGoGenerationMixin):
    """Vision encoder `vision`, partial-global `projector` and causal LM `llm` (state-dict prefixes of the same names).

    Prebuilt (pretrained) parts may be given; they are used as they are, never initialised again.
    """

    config_class = ParGoConfig
    base_model_prefix = "llm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]

    def __init__(
        self, config: ParGoConfig, vision: VisionTower | None = None, llm: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        for part in (vision, llm):
            _mark_initialised(part)
        self.vision = VisionTower(config.vision_config) if vision is None else vision
        self.projector = build_projector(
            config.projector_config,
            vision_dim=config.vision_config.hidden_size,
            llm_dim=config.text_config.hidden_size,
            num_patches=config.vision_config.num_patches,
        )
        if llm is None:
            # The LLM's config may name another dtype than the one that from_pretrained was asked for.
            self.llm = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        else:
            self.llm = llm
            self.generation_config = taken_over(llm.generation_config)
        use_packed_attention(self.llm)
        # generate() makes the masks of static caches from the configuration, which a given LLM does not share.
        config.text_config._attn_implementation = self.llm.config._attn_implementation
        self.attention = AttentionChoice()
        self._packings: dict[tuple[int, int], Packing] = {}
        self._no_split_modules = ["PargoLayer", "PostNormLayer", *(self.llm._no_split_modules or [])]
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, so that transformers 5 lets the LLM's own class fill buffers that no file holds (Falcon-H1's
        multipliers were uninitialised memory). What custom code risks, new values in loaded weights, cannot happen
        here: all initialisation goes through torch.nn.init, which transformers guards."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise projector modules; encoder and LLM bring their own initialisation."""
        reset_non_persistent_buffers(module)
        partitioned = any(p.numel() == 0 for p in module.parameters(recurse=False))  # ZeRO-3: initialised at birth
        ours = any(module is part for part in self.projector.modules())
        if ours and not partitioned and hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def set_attention(
        self, partial: str = "auto", cascade: str = "auto", provider: str = "auto", llm: str = "auto"
    ) -> None:
        """How attention is computed from now on, in words of AttentionChoice. Changes speed and memory, never numbers,
        so it is a choice of the run and not saved with the model.

        Raises:
            ValueError: an unknown word, a provider that is not installed, or a road for packed rows in an LLM that
                keeps its own attention.
        """
        implementation = self.llm.config._attn_implementation
        if llm != "auto" and implementation != PACKED_ATTENTION:
            raise ValueError(
                f"attention.llm is '{llm}' but the LLM computes attention with '{implementation}'; load it with "
                "attn_implementation sdpa, or set attention.llm: auto"
            )
        self.attention = AttentionChoice(partial, cascade, provider, llm)
        check_installed(provider)
        if hasattr(self.projector, "set_attention"):
            self.projector.set_attention(self.attention)

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **kwargs: Any) -> None:
        """transformers' choice for encoder and LLM: one word, or a dict with `vision_config` and `text_config`.

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
        super().set_attn_implementation({k: v for k, v in by_part.items() if k != "vision_config"}, **kwargs)
        backbone = self.vision.backbone
        if encoder is not None and hasattr(backbone, "set_attn_implementation"):
            backbone.set_attn_implementation(encoder, **kwargs)
        elif encoder is not None and isinstance(getattr(backbone, "config", None), PretrainedConfig):
            # In transformers 4 the encoder inside of CLIP and SigLIP is a plain module that reads its configuration.
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

    @property
    def language_model(self) -> nn.Module:
        """The LLM without its head, by the name that other vision-language models have for it."""
        return self.get_decoder()

    @property
    def base_model(self) -> ParGoBackbone:
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
        settings = {"use_reentrant": False} if gradient_checkpointing_kwargs is None else gradient_checkpointing_kwargs
        super().gradient_checkpointing_enable(settings, **kwargs)

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
        return_logits: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ParGoOutput | tuple[Any, ...]:
        """Logits, and the loss over answers when labels are given.

        Args:
            input_ids: `(rows, tokens)`; each picture is a run of `config.visual_tokens` image tokens.
            labels: aligned with input_ids (shifted in here), IGNORE_INDEX where there is no target; the image token
                is none.
            pixel_values: `(images, 3, height, width)`, uint8 raw or float normalised. With 0 images the encoder and
                projector still run once, on a blank picture whose tokens are multiplied by zero (ZeRO-3 gathers are
                collective). None: no vision at all.
            cu_seqlens: sample boundaries of a packed row `(samples + 1,)`; position_ids must restart at each of them
                (made here when None) and attention_mask must be None.
            max_seqlen: longest sample of the pack; only flash attention asks for it.
            logits_to_keep: last positions (int, 0 = all) or an index tensor along the tokens.
            past_key_values, cache: keys and values of earlier tokens, by the old and the new name. Of more pictures
                than the new tokens of one row hold, the last ones are taken.
            inputs_embeds: `(rows, tokens, llm_dim)` in place of input_ids; merge_pictures makes them.
            image_mask: `(rows, tokens)` bool, where visual tokens go; None: where the image token is.
            return_logits: False with labels saves memory: the head runs at target positions only, and logits are None.
            return_dict: False gives a tuple of what is not None; None: as the configuration says.
            num_items_in_batch: divisor of the summed loss, the targets of the global batch; None: targets seen here.

        Raises:
            ValueError: pictures and placeholders do not match, or a packed batch with a mask, a cache or positions that
                do not restart.
        """
        llm_inputs = self._llm_inputs(
            input_ids, attention_mask, position_ids, one_cache(past_key_values, cache), inputs_embeds, pixel_values,
            cu_seqlens, max_seqlen, False if use_cache is None and labels is not None else use_cache, image_mask,
        ) | kwargs  # fmt: skip
        if labels is None:
            output = self._predict(llm_inputs, logits_to_keep)
        else:
            kept = logits_to_keep if return_logits else None
            output = self._loss(
                llm_inputs, _shifted_targets(self._trainable(labels), cu_seqlens), num_items_in_batch, kept
            )
        as_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

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
    ) -> dict[str, Any]:
        """Keyword arguments of `run_decoder`, for those of `forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        packed: dict[str, Any] = {}
        if cu_seqlens is not None:
            position_ids = packed_positions(cu_seqlens, position_ids, attention_mask, past, use_cache, max_seqlen)
            use_cache = None  # with a cache transformers would not see the sample boundaries
            packed = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if input_ids is not None:
            if image_mask is not None:
                input_ids = input_ids.masked_fill(image_mask, self.config.image_token_id)
            inputs_embeds = self._embed_step(input_ids, pixel_values, cached_length(past))
        elif pixel_values is not None:
            is_image = self._image_places(inputs_embeds) if image_mask is None else image_mask
            self._check_placeholders(int(is_image.sum()), pixel_values.shape[0])
            inputs_embeds = self._place_pictures(inputs_embeds, is_image, pixel_values)
        return {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            cache_argument(type(self.get_decoder())): past,
            "use_cache": use_cache,
            **packed,
        }

    def packing(self, longest: int, row: int | None = None) -> Packing:
        """The exact road of packed rows of `row` tokens whose longest sample has `longest` (packing.py); a row may be
        one sample.

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

    def run_decoder(self, llm_inputs: dict[str, Any]) -> ModelOutput:
        """The LLM without its head, on what `_llm_inputs` gave; `last_hidden_state` `(rows, tokens, llm_dim)`."""
        cu_seqlens, max_seqlen = llm_inputs.pop("cu_seqlens", None), llm_inputs.pop("max_seqlen", None)
        if cu_seqlens is None:
            return run_llm(self.llm, **llm_inputs)
        longest = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
        return run_packed_llm(
            self.llm,
            cu_seqlens=cu_seqlens,
            longest=longest,
            road=self.packing(longest, row=llm_inputs["inputs_embeds"].shape[1]).road,
            attention=LLMAttention(self.attention.llm, self.attention.provider),
            **llm_inputs,
        )

    def _run_llm(self, llm_inputs: dict[str, Any], kept: int | torch.Tensor) -> tuple[ModelOutput, torch.Tensor]:
        """LLM outputs, and logits where they are wanted and nowhere else.

        `kept`: the last positions (int, 0 = all) or an index tensor -> logits `(rows, kept, vocabulary)`; or a
        bool mask `(rows, tokens)` -> `(marked positions, vocabulary)`.
        """
        outputs = self.run_decoder(llm_inputs)
        hidden = outputs.last_hidden_state
        by_mask = isinstance(kept, torch.Tensor) and kept.dtype == torch.bool
        # A mask gives 2-D rows: a 3-D input makes matmul copy the whole head (on a CPU 1.3 instead of 0.5 s a step).
        rows = hidden[kept] if by_mask else hidden[:, _positions(kept)]
        return outputs, final_logits(self.llm, rows)

    def _trainable(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels without image tokens, which are never generated; collators that copy input_ids have them."""
        return labels.masked_fill(labels == self.config.image_token_id, IGNORE_INDEX)

    def _predict(self, llm_inputs: dict[str, Any], logits_to_keep: int | torch.Tensor) -> ParGoOutput:
        outputs, logits = self._run_llm(llm_inputs, logits_to_keep)
        return output_of(outputs, logits=logits)

    def _loss(
        self,
        llm_inputs: dict[str, Any],
        targets: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
        logits_to_keep: int | torch.Tensor | None,
    ) -> ParGoOutput:
        """Summed cross-entropy over targets / number of targets; without logits_to_keep logits exist at target
        positions only."""
        wanted = targets != IGNORE_INDEX  # (rows, tokens)
        num_targets = wanted.sum()
        no_target = int(num_targets) == 0
        if no_target:
            # The head must run even so: under ZeRO-3 the other ranks gather its weights now.
            wanted[0, 0] = True
        kept_logits = None
        if logits_to_keep is None:
            outputs, logits = self._run_llm(llm_inputs, wanted)  # (targets, vocabulary)
        else:
            outputs, everywhere = self._run_llm(llm_inputs, 0)  # (rows, tokens, vocabulary)
            logits = everywhere[wanted]
            kept_logits = everywhere[:, _positions(logits_to_keep)]
        if no_target:
            loss = 0 * logits.float().sum()
        else:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            total = F.cross_entropy(logits, targets[wanted], reduction="sum")
            loss = total / (num_targets if num_items_in_batch is None else num_items_in_batch)
        counted = num_targets if logits_to_keep is None else None
        return output_of(outputs, loss=loss, logits=kept_logits, num_targets=counted)


def _positions(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


def _mark_initialised(module: nn.Module | None) -> None:
    """Tell transformers that a prebuilt part has its weights already."""
    for part in module.modules() if module is not None else ():
        part._is_hf_initialized = True


def _shifted_targets(labels: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    """targets[:, t] = labels[:, t + 1]; nothing to predict at the end of a row or of a packed sample."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if cu_seqlens is not None:
        targets[:, cu_seqlens[1:].long() - 1] = IGNORE_INDEX
    return targets
