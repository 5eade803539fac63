"""Adapt the generation settings of an LLM for a ParGo model."""

import logging
from typing import Any

from transformers import GenerationConfig

log = logging.getLogger(__name__)

DECIDING = ("do_sample", "num_beams", "use_cache")
"""Settings that come first, because transformers checks the others by them."""
NOT_OURS = {
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        "generate would return no plain tensor of ids",
    ),
    **dict.fromkeys(("stop_strings", "token_healing"), "generate would ask for a tokenizer at each call"),
    **dict.fromkeys(
        (
            "penalty_alpha", "dola_layers", "num_beam_groups", "diversity_penalty", "constraints", "force_words_ids",
        ),
        "transformers would fetch code for this way of decoding",
    ),
}  # fmt: skip
"""Settings that transformers saves, but with which `generate(**inputs)` fails or returns something
else.
"""
METADATA = ("_from_model_config", "transformers_version")
UNUSED = "not used when transformers generates, which therefore refuses to save it"


def taken_over(settings: GenerationConfig) -> GenerationConfig:
    """Return a copy of an LLM's settings that can be saved and that `generate(**inputs)` works
    with.

    Published files hold settings that transformers itself ignores (a temperature without do_sample)
    and then refuses to save. These are left out, so greedy decoding stays greedy; a line in the log
    names them. Nothing else changes.
    """
    kept = GenerationConfig()
    left_out: dict[str, list[str]] = {}
    names = [name for name in settings.to_diff_dict() if name not in METADATA]
    for name in sorted(names, key=lambda name: name not in DECIDING):
        value = getattr(settings, name)
        reason = _set_or_reason(kept, name, value)
        if reason is not None:
            left_out.setdefault(reason, []).append(f"{name} {value!r}")
    for reason, said in left_out.items():
        log.warning("left out of the LLM's generation settings: %s (%s)", ", ".join(said), reason)
    return kept


def _set_or_reason(kept: GenerationConfig, name: str, value: Any) -> str | None:
    """Set a value and return None, or return the reason why it is left out."""
    if value and name in NOT_OURS:
        return NOT_OURS[name]
    known = hasattr(kept, name)
    before = getattr(kept, name, None)
    setattr(kept, name, value)
    try:
        kept.validate(strict=True)
    except ValueError:
        if known:
            setattr(kept, name, before)
        else:
            delattr(kept, name)
        return UNUSED
    return None
