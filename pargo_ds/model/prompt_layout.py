"""Find each answer, and every other turn, in the text of a rendered conversation.

Positions count characters of the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .configuration_pargo import IMAGE_PLACEHOLDER
from .conversations import Turn
from .prompt_properties import PromptProperties, no_end_message, start_of
from .prompts import ChatTemplate, PaperPrompt


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    `answers`: where each answer begins, and where the token that ends it has passed.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    contents: tuple[tuple[int, int], ...]
    """The same without what a template writes before an answer's own text, and without its end."""
    literals: tuple[tuple[int, int], ...] = ()
    """Places where control tokens are plain text, because somebody wrote them into a turn."""


def lay_out(
    prompt: PaperPrompt | ChatTemplate,
    properties: PromptProperties,
    turns: Sequence[Turn],
    add_generation_prompt: bool = False,
) -> Rendered:
    """Render a conversation and find every turn in it.

    A last answer's end is the end of the text: what a template writes behind it belongs to no turn.

    Raises:
        ValueError: the prompt loses or changes a turn, or renders answers so that generation would
            not start before them; the message names the turn.
    """
    text = prompt.render(turns, add_generation_prompt)
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    starts = [len(start_of(prompt, text, turns, i)) for i in places]
    limits = [*starts, len(text)][1:]
    answers, contents, done, before = [], [], 0, 0
    for i, start, limit in zip(places, starts, limits, strict=True):
        require_found(prompt.name, turns, range(before, i), text[done:start])
        content, end = _find_answer(
            prompt.name, properties, text[:limit], start, turns[i]["content"], i
        )
        if end is None and limit == len(text) and properties.appended:  # the last turn, left open
            text = text[: content[1]] + properties.appended
            end = len(text)
        if end is None:
            raise ValueError(no_end_message(prompt.name, i))
        answers.append((start, end))
        contents.append(content)
        done, before = end, i + 1
    require_found(prompt.name, turns, range(before, len(turns)), text[done:])
    if turns[-1]["role"] == "assistant" and not add_generation_prompt:
        text = text[:done]
    wanted = sum(turn["content"].count(IMAGE_PLACEHOLDER) for turn in turns)
    if text.count(IMAGE_PLACEHOLDER) != wanted:
        raise ValueError(_count_message(prompt.name, turns, text))
    return Rendered(text, tuple(answers), tuple(contents))


def require_found(name: str, turns: Sequence[Turn], chosen: range, text: str) -> None:
    """Raise ValueError unless the texts of the chosen turns stand in `text`, one after another."""
    place = 0
    for i in chosen:
        pieces = re.split(f"({re.escape(IMAGE_PLACEHOLDER)})", turns[i]["content"])
        for piece in filter(None, (piece.strip() for piece in pieces)):
            found = text.find(piece, place)
            if found < 0:
                raise ValueError(_lost_message(name, i, turns[i]["role"], piece, text))
            place = found + len(piece)


def _find_answer(
    name: str, properties: PromptProperties, text: str, start: int, content: str, turn: int
) -> tuple[tuple[int, int], int | None]:
    """((where the answer's own text begins, where it ends), where its end token has passed or
    None).
    """
    content = content.strip()
    ends = re.compile(r"\s*(?:" + "|".join(map(re.escape, properties.ends)) + ")")
    place = first = text.find(content, start)
    while place >= 0:
        end = ends.match(text, place + len(content))
        if end:
            return (place, place + len(content)), end.end()
        last, place = place, text.find(content, place + 1)
    if first < 0:
        raise ValueError(_lost_message(name, turn, "assistant", content, text[start:]))
    if text[last + len(content) :].strip():  # something else follows, so it is not open either
        raise ValueError(no_end_message(name, turn))
    return (last, last + len(content)), None


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
