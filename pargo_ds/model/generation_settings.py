"""The generation settings of an LLM, taken over by a ParGo model."""

import logging
from typing import Any

from transformers import GenerationConfig

log = logging.getLogger(__name__)

DECIDING = ("do_sample", "num_beams", "use_cache")
"""Settings by which transformers judges the others, so they come first."""
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
"""Settings that transformers saves, but with which `generate(**inputs)` fails or returns something else."""
METADATA = ("_from_model_config", "transformers_version")
UNUSED = "not used when transformers generates, which therefore refuses to save it"


def taken_over(settings: GenerationConfig) -> GenerationConfig:
    """A copy of an LLM's settings that can be saved and that `generate(**inputs)` works with.

    Published files hold settings that transformers itself ignores (a temperature without do_sample) and then refuses to
    save. These are left out, so greedy decoding stays greedy; a line in the log names them. Nothing else changes.
    """
    kept = GenerationConfig()
    left_out: dict[str, list[str]] = {}
    names = [name for name in settings.to_diff_dict() if name not in METADATA]
    for name in sorted(names, key=lambda name: name not in DECIDING):
        value = getattr(settings, name)
        reason = (value and NOT_OURS.get(name)) or (None if _fits(kept, name, value) else UNUSED)
        if reason is not None:
            left_out.setdefault(reason, []).append(f"{name} {value!r}")
    for reason, said in left_out.items():
        log.warning("left out of the LLM's generation settings: %s (%s)", ", ".join(said), reason)
    return kept


def _fits(kept: GenerationConfig, name: str, value: Any) -> bool:
    """Set it, unless transformers would then refuse to save the whole."""
    known = hasattr(kept, name)
    before = getattr(kept, name, None)
    setattr(kept, name, value)
    try:
        kept.validate(strict=True)
    except ValueError:
        setattr(kept, name, before) if known else delattr(kept, name)
        return False
    return True
