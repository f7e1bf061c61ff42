"""Tokenizers of every family that the detokenizer must cope with."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from detok_proc.vocabulary import BYTE_OF_CHARACTER
from model_proc.files.model_files import LocalModel


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """Like Llama 2: spaces are "▁", what the vocabulary lacks is written in byte tokens, a leading space is dropped."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "▁▁", "é", "\N{REPLACEMENT CHARACTER}"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁", "▁")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """Like T5 or XLM-R: "▁" begins a word, and the first one's is dropped."""
    tokens = ["[UNK]", "</s>", "▁", "▁a", "▁b", "b", "c"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    """Like BERT: "##" continues a word, and the space before punctuation is dropped."""
    tokens = ["[UNK]", "[SEP]", "do", "##ing", "n't", ".", ",", "'", "a", "##s"]
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken("[SEP]", special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """A word-level vocabulary without any decoder: words are joined by spaces."""
    tokens = ["[UNK]", "[END]", "one", "two", "\N{REPLACEMENT CHARACTER}"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("[END]", special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def suffixes() -> Tokenizer:
    """Like GPT-1: "</w>" ends a word."""
    tokens = ["<unk>", "a", "a</w>", "b</w>", "c"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return tokenizer


@pytest.fixture(scope="session")
def embedded(embedded_model: LocalModel) -> Tokenizer:
    """The tokenizer of the embedded model."""
    return Tokenizer.from_file(str(embedded_model.tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Like GPT-2, but without merges: the id of a byte is its value."""
    characters = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    tokenizer = Tokenizer(models.BPE({characters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
