"""The run file's chat template: several turns of every family can be trained on, and ids are the
same on every day.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from published_templates import PUBLISHED
from tiny_tokenizers import VISUAL_TOKENS, tokenizer_of

from pargo_ds.assembly.templates import run_template
from pargo_ds.config import LLMSection
from pargo_ds.errors import ConfigError
from pargo_ds.model import IGNORE_INDEX, ParGoProcessor

TALK = [
    {"role": "user", "content": "<image>\nWhich colour?"},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
# Qwen 3's thinking models begin every answer with a thought, and leave the thoughts of earlier
# answers out.
THINKING = PUBLISHED["Qwen 3"].template.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "<think>\n",
)
# Phi 3's first release: a question's header of the answer is written by the question itself.
PHI_3 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n<|assistant|>\n"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + PUBLISHED["ChatML, eos another"].template


def answers(kind: str, llm: LLMSection, own: str) -> str:
    tokenizer = tokenizer_of(PUBLISHED[kind])
    processor = ParGoProcessor(
        tokenizer, visual_tokens=VISUAL_TOKENS, chat_template=run_template(llm, own)
    )
    _, labels = processor.encode_conversation(TALK)
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


def test_several_turns_train_with_templates_like_qwen_3_and_phi_3(tmp_path: Path) -> None:
    llm = LLMSection(name="tiny")
    assert (
        answers("Qwen 3", llm, PUBLISHED["Qwen 3"].template)
        == "Red.<|im_end|><think>\n\n</think>\n\nYes.<|im_end|>"
    )
    assert answers("Phi 3", llm, PHI_3) == "Red.<|end|>Yes.<|end|>"
    with pytest.raises(ValueError, match=r"generation prompt.*llm\.chat_template in a run file"):
        answers("Qwen 3", llm, THINKING)
    (tmp_path / "plain.jinja").write_text(PUBLISHED["ChatML, eos another"].template)
    plain = LLMSection(name="tiny", chat_template=str(tmp_path / "plain.jinja"))
    assert answers("Qwen 3", plain, THINKING) == "Red.<|im_end|>Yes.<|im_end|>"


def test_a_template_that_writes_todays_date_is_refused_or_writes_one_day() -> None:
    with pytest.raises(ConfigError, match=r"writes today's date .*llm\.template_date: 2026-01-31"):
        run_template(LLMSection(name="tiny"), DATED)
    frozen = run_template(LLMSection(name="tiny", template_date="2024-07-26"), DATED)
    processor = ParGoProcessor(tokenizer_of(PUBLISHED["ChatML, eos another"]), chat_template=frozen)
    assert processor.render(TALK).startswith("Today is 26 Jul 2024.\n<|im_start|>user")
    guarded = "{% if strftime_now is defined %}" + DATED + "{% endif %}"
    named = run_template(
        LLMSection(name="tiny", template_date="2024-07-26"), {"default": guarded, "rag": "x"}
    )
    assert "26 Jul 2024" in named["default"]
    with pytest.raises(ConfigError, match="a format that is no plain text"):
        run_template(
            LLMSection(name="tiny", template_date="2024-07-26"), "{{ strftime_now(format) }}"
        )
    assert run_template(LLMSection(name="tiny", prompt="paper"), DATED) == DATED
    assert run_template(LLMSection(name="tiny"), None) is None


def test_dates_and_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no date; expected one such as 2026-01-31"):
        LLMSection(name="tiny", template_date="yesterday")
    (tmp_path / "empty.jinja").write_text(" \n")
    for name, said in (
        ("none.jinja", "cannot be read"),
        ("empty.jinja", "is empty"),
        (".", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_template(LLMSection(name="tiny", chat_template=str(tmp_path / name)), None)
