"""What speaks against a text as a caption, without looking at the image. Pure.

Where the numbers come from: repetition and length follow data-juicer's recipe for LLaVA's captions
(10-grams there; 4-grams here, since a part is short), the list of openings CaptionFlow's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pargo_ds.captioning.language import language_problem
from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER

REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable)|i (?:cannot|can't|can not|am not able to)\b|as an ai\b|"
    r"(?:cannot|unable to) (?:assist|help|provide|describe|identify|see|view)|no image (?:was|is) )",
    re.IGNORECASE,
)
LEFTOVER = re.compile(
    r"```|\*\*|^#+ |</?[a-z|][^>]{0,40}>|<\|?image\|?>|\[/?inst\]|https?://|\\[nt\"]|[{}]|\"\s*:|"
    r"\blorem ipsum\b|\[(?:insert|your)\b|\b(?:global|parts|where|what)\"",
    re.IGNORECASE | re.MULTILINE,
)
"""What remains of a format: Markdown, tags, JSON, addresses, templates."""
OPENING = re.compile(
    r"^(?:in )?th(?:e|is) (?:image|picture|photo(?:graph)?|scene)(?:,? (?:we see|we can see|there (?:is|are))| "
    r"(?:shows|depicts|features|displays|presents|captures|portrays|contains|showcases))(?: us)? ",
    re.IGNORECASE,
)
"""Words at the beginning that say nothing; they are cut, the rest stays."""
END = re.compile(r"[.!?…][\"'”’)\]]*$")
WORD = re.compile(r"\w+(?:['’-]\w+)*")
GRAM = 4


@dataclass(frozen=True)
class TextRules:
    """Bounds of the rules: words of the whole caption (with its parts), of the global one and of a
    part; the share of 4-word sequences of a piece that came in it before.
    """

    least_words: int = 20
    most_words: int = 400
    least_global_words: int = 5
    least_part_words: int = 2
    most_part_words: int = 80
    most_repeated: float = 0.2
    english: bool = True


def without_opening(text: str) -> str:
    """Return the text without "The image shows" and the like, its first letter a capital one."""
    rest = OPENING.sub("", text.strip(), count=1)
    return rest[:1].upper() + rest[1:]


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return [word.lower() for word in WORD.findall(text)]


def repeated_share(words: list[str]) -> float:
    """Return the share of the 4-word sequences that came before in the same text; 0 for a short
    one.
    """
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    if not grams:
        return 0.0
    return 1 - len(set(grams)) / len(grams)


def global_problems(text: str, rules: TextRules) -> dict[str, str]:
    """Return rule -> what was found, for the caption of the whole image."""
    words = words_of(text)
    problems = _problems(text, words, rules)
    if len(words) < rules.least_global_words:
        problems["too short"] = f"{len(words)} words; at least {rules.least_global_words}"
    if rules.english:
        problem = language_problem(text)
        if problem is not None:
            problems["not English"] = problem
    return problems


def part_problems(text: str, rules: TextRules) -> dict[str, str]:
    """Return rule -> what was found, for the caption of a part."""
    words = words_of(text)
    problems = _problems(text, words, rules)
    if not rules.least_part_words <= len(words) <= rules.most_part_words:
        problems["part length"] = (
            f"{len(words)} words; {rules.least_part_words} to {rules.most_part_words} are expected"
        )
    return problems


def _problems(text: str, words: list[str], rules: TextRules) -> dict[str, str]:
    problems = {}
    found = REFUSAL.search(text)
    if found:
        problems["refusal"] = f"it says {found[0]!r}"
    found = LEFTOVER.search(text)
    if found:
        problems["leftover"] = f"it holds {found[0]!r}"
    elif IMAGE_PLACEHOLDER in text:
        problems["leftover"] = f"it holds {IMAGE_PLACEHOLDER!r}"
    share = repeated_share(words)
    if share > rules.most_repeated:
        problems["repetition"] = (
            f"{share:.0%} of its {GRAM}-word sequences came before; at most {rules.most_repeated:.0%}"
        )
    if not END.search(text.rstrip()):
        problems["cut off"] = f"it ends with {text.rstrip()[-20:]!r}, not with a sentence"
    return problems
