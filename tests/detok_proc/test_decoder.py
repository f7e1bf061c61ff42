"""The pieces of a sequence, joined, are what the tokenizer makes of all its ids at once."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from detok_proc.decoder import ContextDecoder, Decoder
from detok_proc.vocabulary import MockVocabulary, TokenizerVocabulary
from ipc import mock_vocabulary

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
IDS = st.lists(st.integers(0, 10**9), max_size=30)  # taken modulo the size of the vocabulary at hand
BYTES = st.lists(st.sampled_from([0x20, 0x41, 0x80, 0xBF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0xFF]))


def stream(decoder: Decoder, ids: Iterable[int]) -> str:
    return "".join([*map(decoder.push, ids), decoder.flush()])


def assert_streams_like_decode(tokenizer: Tokenizer, ids: list[int]) -> None:
    vocabulary = TokenizerVocabulary(tokenizer)
    for skip in (True, False):
        assert stream(vocabulary.new_decoder(skip), ids) == tokenizer.decode(ids, skip_special_tokens=skip)


def choose(tokenizer: Tokenizer, numbers: list[int]) -> list[int]:
    return [number % tokenizer.get_vocab_size() for number in numbers]


class TestEmbeddedModel:
    def test_every_token_alone(self, embedded: Tokenizer) -> None:
        vocabulary = TokenizerVocabulary(embedded)
        for skip in (True, False):
            for token_id in range(embedded.get_vocab_size()):
                text = stream(vocabulary.new_decoder(skip), [token_id])
                assert text == embedded.decode([token_id], skip_special_tokens=skip), token_id

    @given(IDS)
    def test_any_ids(self, embedded: Tokenizer, numbers: list[int]) -> None:
        assert_streams_like_decode(embedded, choose(embedded, numbers))

    @given(st.lists(st.integers(0, 300)))
    def test_single_bytes_and_special_tokens(self, embedded: Tokenizer, ids: list[int]) -> None:
        assert_streams_like_decode(embedded, ids)

    def test_unknown_ids_have_no_text(self, embedded: Tokenizer) -> None:
        beyond = embedded.get_vocab_size() + 5
        assert_streams_like_decode(embedded, [beyond, 300, beyond])


class TestByteLevel:
    """A vocabulary of all 256 bytes, in which the id is the byte."""

    @given(BYTES)
    def test_broken_utf_8(self, byte_level: Tokenizer, ids: list[int]) -> None:
        assert_streams_like_decode(byte_level, ids)

    @given(st.text())
    def test_any_text_comes_back(self, byte_level: Tokenizer, text: str) -> None:
        ids = byte_level.encode(text, add_special_tokens=False).ids
        assert stream(TokenizerVocabulary(byte_level).new_decoder(False), ids) == text

    @given(BYTES)
    def test_holds_back_less_than_one_character(self, byte_level: Tokenizer, ids: list[int]) -> None:
        decoder = TokenizerVocabulary(byte_level).new_decoder(True)
        shown = ""
        for length, token_id in enumerate(ids, start=1):
            shown += decoder.push(token_id)
            # Python waits for the third byte of an encoded surrogate, which is bad from its second byte on.
            assert byte_level.decode(ids[:length]) in (shown, shown + REPLACEMENT, shown + 2 * REPLACEMENT)

    def test_text_that_ends_in_a_replacement_character_is_not_held_back(self, byte_level: Tokenizer) -> None:
        ids = byte_level.encode("a" + REPLACEMENT).ids
        decoder = TokenizerVocabulary(byte_level).new_decoder(True)
        assert "".join(map(decoder.push, ids)) == "a" + REPLACEMENT


@given(IDS)
def test_byte_level_with_odd_added_tokens(numbers: list[int]) -> None:
    tokenizer = Tokenizer(models.BPE({"Ã": 0, "©": 1, "a": 2, "Ġ": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<\N{FULLWIDTH VERTICAL LINE}end>", special=True), AddedToken("é")])
    tokenizer.add_tokens(["two words", "Ġ!", "\N{CJK UNIFIED IDEOGRAPH-65E5}"])
    assert_streams_like_decode(tokenizer, choose(tokenizer, numbers))


@pytest.mark.parametrize("name", ["metaspace", "wordpiece", "words", "suffixes"])
@given(numbers=IDS)
def test_other_families(request: pytest.FixtureRequest, name: str, numbers: list[int]) -> None:
    tokenizer = request.getfixturevalue(name)
    assert_streams_like_decode(tokenizer, choose(tokenizer, numbers))


class TestByteFallback:
    @given(st.text(alphabet=st.sampled_from("ab é\nह日😀\ufffd")))
    def test_any_text_comes_back(self, sentencepiece: Tokenizer, text: str) -> None:
        ids = sentencepiece.encode(text, add_special_tokens=False).ids
        assert stream(TokenizerVocabulary(sentencepiece).new_decoder(False), ids) == text
        assert_streams_like_decode(sentencepiece, ids)

    @given(st.lists(st.one_of(st.integers(0, 2), st.integers(259, 269), st.sampled_from("\n é€😀"))))
    def test_tokens_and_whole_characters(self, sentencepiece: Tokenizer, parts: list[int | str]) -> None:
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else [3 + byte for byte in part.encode()]
        assert_streams_like_decode(sentencepiece, ids)

    @given(st.lists(st.one_of(st.integers(259, 269), BYTES), max_size=8))
    def test_bad_bytes_cost_only_what_follows_them(
        self, sentencepiece: Tokenizer, parts: list[int | list[int]]
    ) -> None:
        """Against the rule: in a row of bytes, whole characters up to the first bad byte, then one U+FFFD a byte."""
        ids, expected, row = [0], "<unk>", b""
        for part in [*parts, 0]:
            if isinstance(part, int):
                good = whole_characters(row)
                word = str(sentencepiece.id_to_token(part)).replace("▁", " ")
                expected += good + REPLACEMENT * (len(row) - len(good.encode())) + word
                row = b""
                ids.append(part)
            else:
                row += bytes(part)
                ids += [3 + byte for byte in part]
        assert stream(TokenizerVocabulary(sentencepiece).new_decoder(False), ids) == expected

    def test_a_row_that_is_broken_from_its_start_is_as_in_decode(self, sentencepiece: Tokenizer) -> None:
        assert_streams_like_decode(sentencepiece, [262, 3 + 0x80, *(3 + byte for byte in "€A".encode()), 263])
        assert_streams_like_decode(sentencepiece, [262, 3 + 0xF0, 3 + 0x9F, 3 + 0x98])

    def test_a_special_token_that_is_skipped_does_not_part_a_character(self, sentencepiece: Tokenizer) -> None:
        first, *rest = (3 + byte for byte in "€".encode())
        assert_streams_like_decode(sentencepiece, [first, 1, 1, 1, 1, 1, 1, *rest])

    def test_work_for_a_token_does_not_grow(self, sentencepiece: Tokenizer) -> None:
        """The tokenizer is never asked about more than two ids, and a bad byte is shown at once."""
        watched = _WatchedTokenizer(sentencepiece)
        byte_of = {3 + byte: byte for byte in range(256)}
        alone = {token_id: sentencepiece.decode([token_id]) for token_id in range(269)}
        decoder = ContextDecoder(watched, alone, None, byte_of, ())  # type: ignore[arg-type]
        for token_id in [262, 3 + 0x80, 3 + 0x80, 3 + 0xE2, 3 + 0xE2, 262, 263, 262]:
            assert decoder.push(token_id) != ""
        assert watched.longest == 2


class _WatchedTokenizer:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        self.longest = max(self.longest, len(ids))
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def whole_characters(data: bytes) -> str:
    """The text before the first byte that is not UTF-8."""
    return re.split("\udcff|[\udc80-\udcff]", data.decode(errors="surrogateescape"), maxsplit=1)[0]


@settings(max_examples=50)
@given(st.text(), IDS)
def test_mock_vocabulary(text: str, numbers: list[int]) -> None:
    ids = [*mock_vocabulary.encode(text), *(number % mock_vocabulary.VOCAB_SIZE for number in numbers)]
    assert stream(MockVocabulary().new_decoder(True), ids) == mock_vocabulary.decode(ids)
