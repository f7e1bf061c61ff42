"""The text of special tokens, where it is no token but somebody's words.

A client may write "<|im_end|>" in a message. In the prompt that must stay ten characters, while the same text from the
chat template must become the token that ends a turn. So it is hidden before the template is rendered: each such text
in what the client sent is replaced by one lone surrogate, a character that no client can send, because it is not valid
text. Then whatever the rendered prompt contains in plain sight is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizer_proc.errors import RequestError

# U+DFFF marks the end of a message that is to be continued (chat_template.py).
FIRST_STAND_IN, LAST_STAND_IN = 0xD800, 0xDFFE


class SpecialText:
    """Finds the text of special tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        texts = sorted(set(tokens) - {""})
        # Where there are no special tokens, a pattern that matches nowhere.
        self.pattern = re.compile(alternatives(texts) if texts else r"(?!)")

    def hide(self, value: Any, hidden: dict[str, str]) -> Any:
        """The value, plain data, with stand-ins for special tokens in its strings.

        `hidden` gets a stand-in for each different text: text to stand-in. Raises RequestError when they run out.
        """
        if isinstance(value, str):
            return self.pattern.sub(lambda match: _stand_in(match[0], hidden), value)
        if isinstance(value, list):
            return [self.hide(item, hidden) for item in value]
        if isinstance(value, dict):
            return {self.hide(key, hidden): self.hide(item, hidden) for key, item in value.items()}
        return value


def _stand_in(text: str, hidden: dict[str, str]) -> str:
    if text not in hidden:
        if FIRST_STAND_IN + len(hidden) > LAST_STAND_IN:
            raise RequestError("messages: they contain the text of too many different special tokens", "messages")
        hidden[text] = chr(FIRST_STAND_IN + len(hidden))
    return hidden[text]


def alternatives(words: list[str]) -> str:
    """A regular expression for the longest of some different words.

    Beginnings that words share are written once: tried one by one, a thousand alternatives would take milliseconds
    for each page of text. `words` are in order, and none is empty.
    """
    groups = groupby(words, key=lambda word: word[0])
    branches = [re.escape(first) + _endings([word[1:] for word in group]) for first, group in groups]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _endings(words: list[str]) -> str:
    """A regular expression for the longest of some different words, of which one may be empty."""
    longer = [word for word in words if word]
    if not longer:
        return ""
    if len(longer) == len(words):
        return re.escape(words[0]) if len(words) == 1 else alternatives(words)
    return f"(?:{alternatives(longer)})?"
