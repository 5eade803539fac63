"""How letters are read in answers to questions with options: the rules of several programs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pargo_ds.evaluation.benchmark import Answer, Item, Judgement, letter_of

SEPARATORS = ".()[],:;!*#{}"
BLANKS = str.maketrans(dict.fromkeys(SEPARATORS, " "))
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
LAST_WORDS = 4
ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", flags=re.IGNORECASE)
"""As matching_util.py of VLMEvalKit has it since June 2026: what follows the letter is not looked at,
so that "the answer is blue" is a B."""


def letters(count: int) -> list[str]:
    """Return the first `count` capital letters."""
    return [letter_of(place) for place in range(count)]


def only_one(found: Sequence[str]) -> str | None:
    """Return what was found when it is a single thing; several contradict each other."""
    if len(found) != 1:
        return None
    return found[0]


def letter_or_text(answer: str, options: Sequence[str], sentence: bool = False) -> str | None:
    """Read an answer by VLMEvalKit's rule without its GPT (matching_util.py of 0.0.20): the one
    option's letter that is a word, if it is one of the last four; else the one option whose text is
    in the answer.

    With `sentence` the letter behind "answer is" goes before the text, as in VLMEvalKit since June
    2026.
    """
    known = letters(len(options))
    if any(refusal in answer for refusal in REFUSALS):
        return None
    words = answer.translate(BLANKS).split()
    found = [letter for letter in known if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - LAST_WORDS:
        return found[0]
    if not found and "Z" in words:
        return None
    if sentence and (match := ANSWER_IS.search(answer)) and match[1].upper() in known:
        return match[1].upper()
    return _by_text(answer.lower(), [option.lower() for option in options])


def _by_text(answer: str, options: Sequence[str]) -> str | None:
    if len(answer) > 2 * sum(len(option) for option in options):
        return None
    return only_one([letter_of(place) for place, option in enumerate(options) if option in answer])


def leading_letter(answer: str) -> str | None:
    """Read an answer by lmms-eval's rule for CV-Bench: the first letter behind blanks and
    parentheses, any letter.
    """
    match = re.match(r"[(\s]*([A-Z])[).\s]*", answer.strip(), flags=re.IGNORECASE)
    if match is None:
        return None
    return match[1].upper()


def single_letter(answer: str, count: int) -> str | None:
    """Return a letter alone or before a text: "B", "B.", "(B)", "B. a dog", "(B) a dog"."""
    match = re.match(r"\(?([A-Z])\)?(?:[.:)\s]|$)", answer.strip())
    if match and match[1] in letters(count):
        return match[1]
    return None


def same(said: str | None, item: Item) -> Judgement:
    """Judge an answer as right when what was read of it is the truth."""
    return Judgement(said, float(said is not None and said == item.truth))


def judge_equal(item: Item, answer: Answer) -> Judgement:
    """Judge by LLaVA's and Honeybee's rule for SEED: the whole answer is the letter."""
    if answer.text in letters(len(item.options)):
        return same(answer.text, item)
    return same(None, item)
