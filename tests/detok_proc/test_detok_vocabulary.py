"""The bytes that single tokens stand for, and vocabularies that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from detok_proc.vocabulary import MockVocabulary, TokenizerVocabulary, load_vocabulary
from ipc import mock_vocabulary
from ipc.control_messages import ModelFiles
from ipc.process import FatalError


def model_files(tokenizer_folder: str) -> ModelFiles:
    return ModelFiles("name", "folder", tokenizer_folder, 100, 300, {})


@given(st.text())
def test_the_pieces_of_a_text_joined_are_its_bytes(embedded: Tokenizer, text: str) -> None:
    vocabulary = TokenizerVocabulary(embedded)
    ids = embedded.encode(text, add_special_tokens=False).ids
    assert b"".join(map(vocabulary.piece, ids)).decode(errors="replace") == embedded.decode(ids)


def test_half_a_character_is_raw_bytes(embedded: Tokenizer) -> None:
    vocabulary = TokenizerVocabulary(embedded)
    pieces = [vocabulary.piece(token_id) for token_id in embedded.encode("日", add_special_tokens=False).ids]
    assert len(pieces) > 1
    assert b"".join(pieces) == "日".encode()


def test_special_and_unknown_tokens(embedded: Tokenizer) -> None:
    vocabulary = TokenizerVocabulary(embedded)
    assert vocabulary.piece(embedded.get_vocab()["<|im_end|>"]) == b"<|im_end|>"
    assert vocabulary.piece(embedded.get_vocab_size()) == b""


def test_byte_tokens_and_spaces_of_sentencepiece(sentencepiece: Tokenizer) -> None:
    vocabulary = TokenizerVocabulary(sentencepiece)
    expected = {"<0xE2>": b"\xe2", "▁a": b" a", "a": b"a", "▁▁": b"  ", "</s>": b"</s>", "<think>": b"<think>"}
    assert {token: vocabulary.piece(sentencepiece.get_vocab()[token]) for token in expected} == expected


def test_pieces_of_other_families(
    metaspace: Tokenizer, wordpiece: Tokenizer, words: Tokenizer, suffixes: Tokenizer
) -> None:
    assert TokenizerVocabulary(metaspace).piece(metaspace.get_vocab()["▁a"]) == b" a"
    assert TokenizerVocabulary(wordpiece).piece(wordpiece.get_vocab()["##ing"]) == b"ing"
    assert TokenizerVocabulary(wordpiece).piece(wordpiece.get_vocab()["do"]) == b" do"
    assert TokenizerVocabulary(words).piece(words.get_vocab()["one"]) == b"one"
    assert TokenizerVocabulary(suffixes).piece(suffixes.get_vocab()["b</w>"]) == b"b"


def test_the_mock_has_no_files() -> None:
    vocabulary = load_vocabulary(model_files(""))
    assert isinstance(vocabulary, MockVocabulary)
    assert vocabulary.piece(1) == mock_vocabulary.piece(1)


def test_a_tokenizer_is_read_from_its_folder(tmp_path: Path, words: Tokenizer) -> None:
    words.save(str(tmp_path / "tokenizer.json"))
    assert load_vocabulary(model_files(str(tmp_path))).piece(2) == b"one"


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FatalError, match=r"tokenizer\.json") as caught:
        load_vocabulary(model_files(str(tmp_path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
