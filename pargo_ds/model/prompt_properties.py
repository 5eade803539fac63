"""What is the same in every conversation that a prompt renders: the text before an answer, and the
tokens that end one. It is learnt from conversations of known words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversations import Turn, plain_turn
from .prompts import ANSWER, LATER, QUESTION, ChatTemplate, PaperPrompt

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The names of bytes in tokenizers like that of Llama 2, for letters that they do not know."""


@dataclass(frozen=True)
class PromptProperties:
    """The properties of a prompt that are the same for every conversation."""

    marker: str
    """The text between a question and its answer."""
    ends: tuple[str, ...]
    """Control tokens that follow an answer: within a conversation, and at its end."""
    appended: str
    """The text that must be added after a last answer, if the template leaves the turn open."""
    control: tuple[str, ...] = ()
    """The tokens that are plain text where people write them: those with a role, and those that
    this prompt puts between turns.

    Others that were added to the vocabulary, such as <think>, are part of what a model says.
    """


def marker_of(prompt: PaperPrompt | ChatTemplate) -> str:
    """Return the text that a prompt writes between a question and its answer; "" when that cannot
    be seen.
    """
    try:
        asked = prompt.render([plain_turn("user", QUESTION)], True)
    except ValueError:
        return ""
    _, found, marker = asked.rpartition(QUESTION)
    if not found:
        return ""
    return marker


def properties_of(
    prompt: PaperPrompt | ChatTemplate, tokenizer: PreTrainedTokenizerBase
) -> PromptProperties:
    """Learn a prompt's properties from conversations of known words.

    Some templates (GLM's) write nothing after an answer, and begin the next turn with a control
    token. There the model ends its turn by saying that token: it is added after a last answer.

    Raises:
        ValueError: a prompt that loses turns, ignores add_generation_prompt, or leaves answers
            without an end.
    """
    answered = [plain_turn("user", QUESTION), plain_turn("assistant", ANSWER)]
    once = prompt.render(answered)
    asked = start_of(prompt, once, answered, 1)
    for text, role, words in ((asked, "user", QUESTION), (once, "assistant", ANSWER)):
        if words not in text:
            raise ValueError(
                f"{prompt.name} leaves out the {role} turn: {text[:200]!r}. Use another chat_template "
                "(llm.chat_template in a run file)"
            )
    tokens = control_tokens(tokenizer)
    _check_generation_prompt(prompt, asked, once, tokens)
    at_the_end = _end_after(once, tokens)
    try:
        again = prompt.render([*answered, plain_turn("user", LATER)], True)
        within = _end_after(again, tokens)
    except ValueError:  # a template for one question; more of them get its own message
        within = again = ""
    ends = tuple(dict.fromkeys(end.strip() for end in (within, at_the_end) if end))
    if not ends:
        raise ValueError(no_end_message(prompt.name, 1))
    written = {token for token in tokens if token in ends or token in asked or token in again}
    control = tuple(sorted(written | special_tokens(tokenizer)))
    appended = "" if at_the_end else within
    return PromptProperties(marker_of(prompt), ends, appended, control)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the tokens that are no ordinary text: those with a role, such as eos, and all added to
    the vocabulary.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens = added | {str(token) for token in tokenizer.all_special_tokens}
    # Some tokenizers add runs of blanks to their vocabulary.
    return {token for token in tokens if token.strip() and token != IMAGE_PLACEHOLDER}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the control tokens that the tokenizer itself calls special."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    return {token for token in control_tokens(tokenizer) & special if BYTE.fullmatch(token) is None}


def _check_generation_prompt(
    prompt: PaperPrompt | ChatTemplate, asked: str, once: str, tokens: set[str]
) -> None:
    header = once[len(asked) : once.rfind(ANSWER)]
    ignored = asked == prompt.render([plain_turn("user", QUESTION)], False)
    if ignored and any(token in header for token in tokens):
        raise ValueError(
            f"{prompt.name} ignores add_generation_prompt, though it writes {header!r} in front of an answer: the "
            "model would have to say that itself. Use a template that writes it when add_generation_prompt is true"
        )


def _end_after(text: str, tokens: set[str]) -> str:
    """The blanks and the control token right after ANSWER; "" when another text follows, or
    none.
    """
    if not tokens:
        return ""
    known = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    end = re.compile(rf"\s*(?:{known})").match(text, text.rfind(ANSWER) + len(ANSWER))
    if end is None:
        return ""
    return end.group()


def start_of(
    prompt: PaperPrompt | ChatTemplate, text: str, turns: Sequence[Turn], turn: int
) -> str:
    """Return the prompt that generation of an answer starts from, which must be the beginning of the
    conversation's text.

    Raises ValueError when it is not.
    """
    start = prompt.render(turns[:turn], True)
    if not text.startswith(start):
        raise ValueError(
            f"{prompt.name} renders turn {turn} so that it does not start with its own generation prompt: answers "
            f"cannot be found in it. Expected a start ending in {start[-60:]!r}, got "
            f"{text[max(len(start) - 60, 0) :][:80]!r}. "
            "Use another chat_template (llm.chat_template in a run file) that keeps earlier turns as they are, or "
            "prompt 'paper'"
        )
    return start


def no_end_message(name: str, turn: int) -> str:
    """Return the message about an answer that nothing ends."""
    return (
        f"{name} writes nothing after the answer of turn {turn} that could end it: the model could not learn to stop. "
        "Use a template with an end-of-turn token"
    )
