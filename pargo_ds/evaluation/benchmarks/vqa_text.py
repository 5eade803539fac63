"""How VQA's evaluation writes answers before it compares them, and how ten people's answers count.

The rules of vqaEval.py (GT-Vision-Lab/VQA) and of the EvalAI processor (pythia, M4C), oddities
included: the pattern that takes full stops out was meant to spare decimals on both sides and looks
at the right side only, and at most 32 are taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA = re.compile(r"\d,\d")
STOP = re.compile(r"\.(?!\d)")
MOST_STOPS = 32
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've
""".split()  # noqa: SIM905


def _without_one_apostrophe(words: Sequence[str]) -> dict[str, str]:
    """Each word as people write it who leave out one apostrophe -> the word."""
    found = {}
    for word in words:
        for place, sign in enumerate(word):
            if sign == "'":
                found[word[:place] + word[place + 1 :]] = word
    return found


CONTRACTIONS = _without_one_apostrophe(CONTRACTED) | {"somebody'd": "somebodyd"}


def without_punctuation(text: str) -> str:
    """Signs between letters become blanks; those beside a blank, or all where a number has a comma,
    go.
    """
    result = text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if beside or COMMA.search(text) else " ")
    return STOP.sub("", result, count=MOST_STOPS)


def plain_words(text: str) -> str:
    """Return the text in lower case, numbers as digits, no articles, apostrophes where they belong."""
    words = [WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def stripped(text: str) -> str:
    """Return one line without blanks around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai(text: str) -> str:
    """Return an answer as EvalAI compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_punctuation(stripped(text)))


def vqa(text: str) -> str:
    """Return an answer as vqaEval.py compares it when people do not agree."""
    return plain_words(without_punctuation(stripped(text)))


def share_of_people(answer: str, people: Sequence[str]) -> float:
    """Return the mean over all but one of the people of min(1, people who said it / 3)."""
    matches = sum(one == answer for one in people)
    # Left out in turn: those who said it see one fewer, the others all of them.
    agreeing = matches * min(1.0, (matches - 1) / 3)
    return (agreeing + (len(people) - matches) * min(1.0, matches / 3)) / len(people)
