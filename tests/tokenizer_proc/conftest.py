"""Folders with tokenizers: the embedded model's, and small ones of other families."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_proc.files.model_files import LocalModel


@pytest.fixture(scope="session")
def embedded_folder(embedded_model: LocalModel) -> Path:
    """The embedded model's folder: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    return embedded_model.tokenizer_folder


@pytest.fixture(scope="session")
def embedded(embedded_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(embedded_folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Llama 2: "▁" before the very first text, single bytes for what is lacking, BOS before every text."""
    letters = "abcdefghijklmnopqrstuvwxyz<>|/_\n"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += ["▁", "▁a", "▁h", "hi", "▁hi"]
    merges = [("▁", "a"), ("h", "i"), ("▁", "hi")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokens.index("<s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False, rstrip=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return saved(tokenizer, tmp_path_factory)


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level vocabulary that can write "[END]" in no other way than by that token."""
    tokens = ["[UNK]", "[END]", "one", "two"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.add_special_tokens([AddedToken("[END]", special=True)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    return saved(tokenizer, tmp_path_factory)


def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
