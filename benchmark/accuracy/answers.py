"""What an answer says: the letter of a choice, or a number. None where it says neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

REASONING_END = "</think>"

# The letter A is also an article. It is one where a word follows, unless that word says something of the letter.
_ARTICLE = r"(?!['\u2019])(?![ \t]+(?!is\b|because\b|since\b|as\b|and\b|or\b)[a-zA-Z])"
_LETTER = rf"(?:([B-D])\b(?!['\u2019])|(A)\b{_ARTICLE})"
_OPEN = r"[\s*_`\"'(\[{$]*"
_STATED = re.compile(
    rf"(?:answer|choice|option)s?\b(?:\s+(?:would|should|must|is|be|letter|choice|option|correct|the))*\s*[:=-]?{_OPEN}"
    rf"(?:\\?boxed\{{)?{_LETTER}",
    re.IGNORECASE,
)
_FIRST = re.compile(rf"^{_OPEN}{_LETTER}")
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*([A-D])\b")
_MARKED = re.compile(r"\(([A-D])\)|\*\*([A-D])\b|(?:^|\n)\s*([A-D])[.):](?=\s|$)|\b([A-D])(?=[.!]?\s*$)")

_NUMBER = re.compile(r"[-\u2212]?\s?[$€£]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?")


def letter(answer: str, choices: Sequence[str] = ()) -> str | None:
    """The choice that an answer names, "A" to "D".

    In this order: what it states last ("the answer is B"), a boxed letter, the letter it begins with, a letter that
    is marked as one, a text that is one of the `choices`, alone or behind its letter.
    """
    text = visible(answer)
    if stated := [_group(match) for match in _STATED.finditer(text)]:
        return stated[-1].upper()
    for pattern in (_BOXED, _FIRST, _MARKED):
        if match := pattern.search(text):
            return _group(match)
    bare = text.strip(" \t\n.*\"'").casefold()
    wanted = {name: choice.strip(" .").casefold() for name, choice in zip("ABCD", choices, strict=False)}
    same = [name for name, choice in wanted.items() if bare in (choice, f"{name.casefold()} {choice}")]
    return same[0] if len(same) == 1 else None


def number(answer: str) -> Fraction | None:
    """The number that an answer ends with: the first one behind the last ####, else a boxed one, else the last one."""
    text = visible(answer)
    before, marks, behind = text.rpartition("####")
    if marks and (found := _NUMBER.search(behind)):
        return value_of(found[0])
    if found := re.search(r"\\boxed\{([^{}]*)\}", text):
        return value_of(found[1])
    numbers = [match[0] for match in _NUMBER.finditer(before if marks else text)]
    return value_of(numbers[-1]) if numbers else None


def value_of(text: str) -> Fraction | None:
    """A number as people write it: `1,234.50`, `$18`, `-3/4`, `18.`; None when it is none."""
    plain = re.sub(r"[\s,$€£%]", "", text).replace("\u2212", "-").rstrip(".")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def visible(answer: str) -> str:
    """An answer without the reasoning in front of it."""
    return answer.rpartition(REASONING_END)[2].strip()


def _group(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)
