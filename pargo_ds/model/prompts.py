"""Conversations -> text: the tokenizer's chat template or the paper's prompt, and where each answer lies in it.

A turn is `{"role": ..., "content": text}`, pictures written `<image>`. Positions count characters of the rendered text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversations import Turn

PROMPT_VERSION = "one text, cut where a token would reach into an answer; control tokens in texts are words"
"""Names the code that makes ids of turns, for fingerprints: a change of the ids changes it."""

PAPER_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How tokenizers of Llama 2's kind name the bytes of letters that they do not know."""
# Words that no template writes by itself.
QUESTION, ANSWER, LATER = "Wherefore zyx one", "Thus zyx two", "Whereto zyx three"


class PaperPrompt:
    """The prompt of bytedance/ParGo, Vicuna style: each answer ends with the eos token."""

    name = "prompt 'paper'"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._eos, self._opening = tokenizer.eos_token, _opening_token(tokenizer)

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Turns -> text. Raises ValueError for a system turn that is not the first one."""
        system = PAPER_SYSTEM_PROMPT
        if turns and turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
        text = self._opening + system
        for turn in turns:
            if turn["role"] == "user":
                text += " USER: " + _paper_pictures(turn["content"])
            elif turn["role"] == "assistant":
                text += f" ASSISTANT: {turn['content']}{self._eos}"
            else:
                raise ValueError("prompt 'paper' takes a system turn only as the first turn")
        return text + (" ASSISTANT: " if add_generation_prompt else "")


class ChatTemplate:
    """A Jinja template of Hugging Face's kind.

    `parts`: it reads lists of parts, as those of vision models do, and loses plain text. `options`: its own variables,
    such as enable_thinking.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        parts: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._tokenizer, self._template, self._parts, self._options = tokenizer, template, parts, options or {}
        self.name = f"the chat template (it begins {template[:40]!r})"

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Turns -> text. Raises ValueError when the template raises, whatever it raises."""
        try:
            return self._tokenizer.apply_chat_template(
                self._as_read(turns),
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **self._options,
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(f"{self.name} refuses the turns ({roles}): {type(error).__name__}: {error}") from error

    def generation_spans(self, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        """Where the template's {% generation %} blocks lie in the text, in characters; none where it has none."""
        if "generation %}" not in self._template and "generation -%}" not in self._template:
            return []
        _, (spans,) = render_jinja_template(
            conversations=[self._as_read(turns)],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **{**self._tokenizer.special_tokens_map, **self._options},
        )
        return [tuple(span) for span in spans]

    def _as_read(self, turns: Sequence[Turn]) -> list[Turn]:
        if not self._parts:
            return list(turns)
        return [{**turn, "content": _as_parts(turn["content"])} for turn in turns]


def wants_parts(tokenizer: PreTrainedTokenizerBase, template: str, options: dict[str, Any] | None = None) -> bool:
    """Whether a template reads lists of parts only."""

    def shows(parts: bool) -> bool:
        try:
            return QUESTION in ChatTemplate(tokenizer, template, parts, options).render([_turn("user", QUESTION)])
        except ValueError:
            return False

    return not shows(parts=False) and shows(parts=True)


@dataclass(frozen=True)
class Habits:
    """What a prompt does with every conversation."""

    marker: str
    """The text between a question and its answer."""
    ends: tuple[str, ...]
    """Control tokens that follow an answer: within a conversation, and at its end."""
    appended: str
    """What must be added after a last answer, where the template leaves the turn open."""
    control: tuple[str, ...] = ()
    """The tokens that texts may hold as mere words: those with a role, and those that this prompt puts between turns.

    Others that were added to the vocabulary, such as <think>, are part of what a model says."""


def marker_of(prompt: PaperPrompt | ChatTemplate) -> str:
    """The text that a prompt writes between a question and its answer; "" when that cannot be seen."""
    try:
        head, found, marker = prompt.render([_turn("user", QUESTION)], True).rpartition(QUESTION)
    except ValueError:
        return ""
    return marker if found else ""


def habits_of(prompt: PaperPrompt | ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> Habits:
    """Learn a prompt's habits from conversations of known words.

    Some templates (GLM's) write nothing after an answer, and begin the next turn with a control token. There the model
    ends its turn by saying that token: it is added after a last answer.

    Raises:
        ValueError: a prompt that loses turns, ignores add_generation_prompt, or leaves answers without an end.
    """
    answered = [_turn("user", QUESTION), _turn("assistant", ANSWER)]
    once = prompt.render(answered)
    asked = _start_of(prompt, once, answered, 1)
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
        again = prompt.render([*answered, _turn("user", LATER)], True)
        within = _end_after(again, tokens)
    except ValueError:  # a template for one question; more of them get its own message
        within = again = ""
    ends = tuple(dict.fromkeys(end.strip() for end in (within, at_the_end) if end))
    if not ends:
        raise ValueError(_no_end_message(prompt.name, 1))
    control = {token for token in tokens if token in ends or token in asked or token in again}
    control = tuple(sorted(control | special_tokens(tokenizer)))
    return Habits(marker_of(prompt), ends, "" if at_the_end else within, control)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that are no ordinary text: those with a role, such as eos, and all added to the vocabulary."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens = added | {str(token) for token in tokenizer.all_special_tokens}
    # Some tokenizers add runs of blanks to their vocabulary.
    return {token for token in tokens if token.strip() and token != IMAGE_PLACEHOLDER}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The control tokens that the tokenizer itself calls special."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    return {token for token in control_tokens(tokenizer) & special if BYTE.fullmatch(token) is None}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. `answers`: where each answer begins, and where the token that ends it has passed."""

    text: str
    answers: tuple[tuple[int, int], ...]
    contents: tuple[tuple[int, int], ...]
    """The same without what a template writes before an answer's own text, and without its end."""
    literals: tuple[tuple[int, int], ...] = ()
    """Where control tokens are mere words: somebody wrote them into a turn."""


def lay_out(
    prompt: PaperPrompt | ChatTemplate, habits: Habits, turns: Sequence[Turn], add_generation_prompt: bool = False
) -> Rendered:
    """Render a conversation and find every turn in it.

    A last answer's end is the end of the text: what a template writes behind it belongs to no turn.

    Raises:
        ValueError: the prompt loses or changes a turn, or renders answers so that generation would not start before
            them; the message names the turn.
    """
    text = prompt.render(turns, add_generation_prompt)
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    starts = [len(_start_of(prompt, text, turns, i)) for i in places]
    limits = [*starts, len(text)][1:]
    answers, contents, done, before = [], [], 0, 0
    for i, start, limit in zip(places, starts, limits, strict=True):
        require_found(prompt.name, turns, range(before, i), text[done:start])
        content, end = _find_answer(prompt.name, habits, text[:limit], start, turns[i]["content"], i)
        if end is None and limit == len(text) and habits.appended:  # the last turn, left open
            text = text[: content[1]] + habits.appended
            end = len(text)
        if end is None:
            raise ValueError(_no_end_message(prompt.name, i))
        answers.append((start, end))
        contents.append(content)
        done, before = end, i + 1
    require_found(prompt.name, turns, range(before, len(turns)), text[done:])
    if turns[-1]["role"] == "assistant" and not add_generation_prompt:
        text = text[:done]
    if text.count(IMAGE_PLACEHOLDER) != sum(turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns):
        raise ValueError(_count_message(prompt.name, turns, text))
    return Rendered(text, tuple(answers), tuple(contents))


def require_found(name: str, turns: Sequence[Turn], chosen: range, text: str) -> None:
    """Raises ValueError unless the texts of the chosen turns stand in `text`, one after another."""
    place = 0
    for i in chosen:
        pieces = re.split(f"({re.escape(IMAGE_PLACEHOLDER)})", turns[i]["content"])
        for piece in filter(None, (piece.strip() for piece in pieces)):
            found = text.find(piece, place)
            if found < 0:
                raise ValueError(_lost_message(name, i, turns[i]["role"], piece, text))
            place = found + len(piece)


def _find_answer(
    name: str, habits: Habits, text: str, start: int, content: str, turn: int
) -> tuple[tuple[int, int], int | None]:
    """((where the answer's own text begins, where it ends), where its end token has passed or None)."""
    content = content.strip()
    ends = re.compile(r"\s*(?:" + "|".join(map(re.escape, habits.ends)) + ")")
    place = first = text.find(content, start)
    while place >= 0:
        end = ends.match(text, place + len(content))
        if end:
            return (place, place + len(content)), end.end()
        last, place = place, text.find(content, place + 1)
    if first < 0:
        raise ValueError(_lost_message(name, turn, "assistant", content, text[start:]))
    if text[last + len(content) :].strip():  # something else follows, so it is not open either
        raise ValueError(_no_end_message(name, turn))
    return (last, last + len(content)), None


def _start_of(prompt: PaperPrompt | ChatTemplate, text: str, turns: Sequence[Turn], turn: int) -> str:
    """The prompt that generation of an answer starts from, which must be the beginning of the conversation's text."""
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


def _check_generation_prompt(prompt: PaperPrompt | ChatTemplate, asked: str, once: str, tokens: set[str]) -> None:
    header = once[len(asked) : once.rfind(ANSWER)]
    ignored = asked == prompt.render([_turn("user", QUESTION)], False)
    if ignored and any(token in header for token in tokens):
        raise ValueError(
            f"{prompt.name} ignores add_generation_prompt, though it writes {header!r} in front of an answer: the "
            "model would have to say that itself. Use a template that writes it when add_generation_prompt is true"
        )


def _end_after(text: str, tokens: set[str]) -> str:
    """The blanks and the control token right after ANSWER; "" when another text follows, or none."""
    known = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    end = re.compile(rf"\s*(?:{known})").match(text, text.rfind(ANSWER) + len(ANSWER)) if known else None
    return end.group() if end else ""


def _lost_message(name: str, turn: int, role: str, piece: str, text: str) -> str:
    return (
        f"{name} leaves out or changes turn {turn} ({role}): {piece[:80]!r} is not in its part of the text, "
        f"{text[-200:]!r}. Use another chat_template (llm.chat_template in a run file), or prompt 'paper'"
    )


def _count_message(name: str, turns: Sequence[Turn], text: str) -> str:
    wanted = [turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns]
    return (
        f"{name} writes {text.count(IMAGE_PLACEHOLDER)} {IMAGE_PLACEHOLDER}, but the turns have {wanted}: it loses or "
        "repeats turns. Use another chat_template (llm.chat_template in a run file), or prompt 'paper'"
    )


def _no_end_message(name: str, turn: int) -> str:
    return (
        f"{name} writes nothing after the answer of turn {turn} that could end it: the model could not learn to stop. "
        "Use a template with an end-of-turn token"
    )


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _as_parts(content: str) -> list[dict[str, str]]:
    pieces = re.split(f"({re.escape(IMAGE_PLACEHOLDER)})", content)
    image = {"type": "image"}
    return [image if piece == IMAGE_PLACEHOLDER else {"type": "text", "text": piece} for piece in pieces if piece]


def _paper_pictures(content: str) -> str:
    head, *rest = content.split(IMAGE_PLACEHOLDER)
    return head + "".join(f"<Img>{IMAGE_PLACEHOLDER}</Img> {part.lstrip()}" for part in rest)


def _opening_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-sequence token, if this tokenizer puts one before a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""
