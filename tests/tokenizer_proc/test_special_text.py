"""Finding the text of special tokens, and hiding it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer_proc.errors import RequestError
from tokenizer_proc.special_text import LAST_STAND_IN, SpecialText, alternatives

WORDS = st.sets(st.text(alphabet="ab<.", min_size=1, max_size=5), min_size=1, max_size=8)


@given(WORDS, st.text(alphabet="ab<.", max_size=20))
def test_the_longest_word_at_the_first_place(words: set[str], text: str) -> None:
    simple = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    assert re.findall(alternatives(sorted(words)), text) == re.findall(simple, text)


@given(WORDS, st.text(alphabet="ab<.", max_size=20))
def test_what_is_hidden_can_be_put_back(words: set[str], text: str) -> None:
    special = SpecialText(words)
    hidden: dict[str, str] = {}
    covered = special.hide(text, hidden)
    assert special.pattern.search(covered) is None
    assert covered.translate({ord(stand_in): original for original, stand_in in hidden.items()}) == text


def test_all_strings_of_plain_data() -> None:
    special = SpecialText(["<s>"])
    hidden: dict[str, str] = {}
    chat = {"messages": [{"role": "user", "content": "a<s>b"}], "x<s>": ["<s>", 1, None, True, 2.5]}
    cover = special.hide(chat, hidden)
    stand_in = hidden["<s>"]
    assert cover == {
        "messages": [{"role": "user", "content": f"a{stand_in}b"}],
        f"x{stand_in}": [stand_in, 1, None, True, 2.5],
    }
    assert len(stand_in) == 1


def test_without_special_tokens_nothing_is_hidden() -> None:
    hidden: dict[str, str] = {}
    assert SpecialText([]).hide(["<s>", ""], hidden) == ["<s>", ""]
    assert SpecialText([""]).hide("text", hidden) == "text"
    assert hidden == {}


def test_stand_ins_are_no_valid_text_and_can_run_out() -> None:
    texts = [f"<{number}>" for number in range(3000)]
    special = SpecialText(texts)
    hidden: dict[str, str] = {}
    with pytest.raises(RequestError, match="too many"):
        special.hide(texts, hidden)
    assert max(hidden.values()) == chr(LAST_STAND_IN)
    for stand_in in hidden.values():
        with pytest.raises(UnicodeEncodeError):
            stand_in.encode()
