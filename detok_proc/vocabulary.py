"""What the ids of a model's vocabulary stand for: the bytes of each, and the decoder that joins them to text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from tokenizers import Tokenizer, decoders

from detok_proc.decoder import ByteDecoder, ContextDecoder, Decoder
from ipc import mock_vocabulary
from ipc.control_messages import ModelFiles
from ipc.process import FatalError

# The printable stand-ins of GPT-2's byte-level vocabularies: most Latin-1 characters stand for their own byte, and
# U+0100 onwards for the others in rising order.
_OWN_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHER_BYTES = sorted(set(range(256)) - set(_OWN_BYTES))
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _OWN_BYTES} | {
    chr(0x100 + index): byte for index, byte in enumerate(_OTHER_BYTES)
}


class Vocabulary(Protocol):
    """The ids of one model."""

    def piece(self, token_id: int) -> bytes:
        """The bytes that an id stands for: raw bytes, perhaps half a character; b"" for an id that is unknown."""
        ...

    def new_decoder(self, skip_special_tokens: bool) -> Decoder:
        """A decoder for a new sequence."""
        ...

    def shows_end(self, token_id: int) -> bool:
        """Whether this id has text even where it ends a sequence."""
        ...


class MockVocabulary:
    """The vocabulary of `--model mock`. It has no special tokens: the word that ends the answer is part of it."""

    def piece(self, token_id: int) -> bytes:
        return mock_vocabulary.piece(token_id)

    def new_decoder(self, skip_special_tokens: bool) -> Decoder:
        return ByteDecoder(mock_vocabulary.piece, ())

    def shows_end(self, token_id: int) -> bool:
        return token_id == mock_vocabulary.EOS_ID


class TokenizerVocabulary:
    """The vocabulary of a tokenizer.json."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in self._added.items() if token.special)
        self._is_byte_level = _joins(tokenizer, ["Ã", "©"], "é")
        self._byte_of = _byte_tokens(tokenizer)
        self._alone = _Filled(self._decode_alone)
        neighbours_matter = isinstance(tokenizer.decoder, (decoders.BPEDecoder, decoders.CTC))
        self._after: dict[int, str] | None = None if neighbours_matter else {}
        self._pieces = _Filled(self._byte_level_piece if self._is_byte_level else self._context_piece)

    def piece(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def new_decoder(self, skip_special_tokens: bool) -> Decoder:
        skipped = self._special if skip_special_tokens else frozenset[int]()
        if self._is_byte_level:
            return ByteDecoder(self._pieces.__getitem__, skipped)
        return ContextDecoder(self._tokenizer, self._alone, self._after, self._byte_of, skipped)

    def shows_end(self, token_id: int) -> bool:
        return False

    def _decode_alone(self, token_id: int) -> str | None:
        if self._tokenizer.id_to_token(token_id) is None:
            return None
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _byte_level_piece(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token that is written in plain text
            return token.encode()

    def _context_piece(self, token_id: int) -> bytes:
        """What the token adds to a text that it does not begin."""
        if token_id in self._byte_of:
            return bytes((self._byte_of[token_id],))
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        decoder = self._tokenizer.decoder
        if decoder is None or token_id in self._added:
            return token.encode()
        before, both = decoder.decode(["a"]), decoder.decode(["a", token])
        return (both.removeprefix(before) if both.startswith(before) else token).encode()


def load_vocabulary(files: ModelFiles) -> Vocabulary:
    """The vocabulary of the model that `files` names. Raises FatalError when it cannot be read."""
    if not files.tokenizer_folder:
        return MockVocabulary()
    path = Path(files.tokenizer_folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise FatalError(f"cannot read {path}: {error}; the model needs a tokenizer.json") from None
    return TokenizerVocabulary(tokenizer)


Value = TypeVar("Value")


class _Filled(dict[int, Value]):
    """A table that works out each entry when it is first asked for."""

    def __init__(self, work_out: Callable[[int], Value]) -> None:
        super().__init__()
        self._work_out = work_out

    def __missing__(self, key: int) -> Value:
        value = self[key] = self._work_out(key)
        return value


def _joins(tokenizer: Tokenizer, tokens: list[str], text: str) -> bool:
    """Whether the tokenizer's decoder makes this text of these tokens: what it does says more than how it is built."""
    return tokenizer.decoder is not None and tokenizer.decoder.decode(tokens) == text


def _byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """The ids of tokens such as "<0xE2>", which stand for one byte where the decoder reads them so."""
    if not _joins(tokenizer, ["<0xC3>", "<0xA9>"], "é"):
        return {}
    ids = {byte: tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token_id: byte for byte, token_id in ids.items() if token_id is not None}
