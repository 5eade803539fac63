"""Is a text English? Two plain rules that can be explained: its script, and its small words.

A short alt text ("Nikon D750 24 MP") has no language that a rule could find, so only its script is
asked for; from 12 words on, an English text has small words enough to count. Languages in the Latin
script pass with fewer words: this is no identification of languages, and does not claim to be.
"""

from __future__ import annotations

import re

SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the and or but of in on at to for from with by is are was were be been it its this
        that there these those as which who while near behind above below under over into has have
        his her their one two some no not""",
    )
)
LONG = 12
"""Words from which on the small words are counted."""
LEAST_LATIN, LEAST_SMALL = 0.8, 0.15
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def latin_share(text: str) -> float:
    """Return the share of Latin letters among all (accents included); 1 for a text without letters."""
    if text.isascii():
        return 1.0
    letters = [letter for letter in text if letter.isalpha()]
    if not letters:
        return 1.0
    latin = sum(letter < "\u0250" or "\u1e00" <= letter <= "\u1eff" for letter in letters)
    return latin / len(letters)


def small_word_share(text: str) -> float:
    """Return the share of English articles, prepositions and the like among the words; 0 for none."""
    words = [word.lower() for word in WORD.findall(text)]
    return sum(word in SMALL_WORDS for word in words) / max(1, len(words))


def language_problem(text: str) -> str | None:
    """Return why a text is not taken for English, in words; None when nothing speaks against it."""
    share = latin_share(text)
    if share < LEAST_LATIN:
        return f"{share:.0%} of its letters are Latin; at least {LEAST_LATIN:.0%} are expected"
    if len(WORD.findall(text)) >= LONG and small_word_share(text) < LEAST_SMALL:
        return (
            f"{small_word_share(text):.0%} of its words are English small words (the, of, with); in "
            f"a text of {LONG} words or more at least {LEAST_SMALL:.0%} are expected"
        )
    return None
