"""From text to the token ids of one model, and back."""

from __future__ import annotations

import secrets
import threading
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import AddedToken, Tokenizer

from ipc import mock_vocabulary
from ipc.codec import Ids
from ipc.control_messages import ModelFiles
from ipc.process import FatalError
from tokenizer_proc.errors import RequestError
from tokenizer_proc.special_text import SpecialText


class Encoder(Protocol):
    """The vocabulary of one model. All methods may be called from several threads."""

    special: SpecialText  # where its special tokens are in a text
    special_ids: Mapping[str, int]  # the ids of those tokens
    max_token_chars: int  # no token stands for more characters

    def encode(self, text: str, add_special_tokens: bool) -> Ids:
        """The ids of a text; the text of special tokens in it becomes these tokens.

        `add_special_tokens` adds those that begin or end every text of this model, such as BOS.
        """
        ...

    def encode_hidden(self, text: str, hidden: Mapping[str, str], add_special_tokens: bool) -> Ids:
        """The same for a text with stand-ins: what they stand for stays plain text.

        `hidden` is what `SpecialText.hide` filled in. Raises RequestError when the vocabulary cannot spell the text of
        a special token otherwise than by that token.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...

    def names(self, token_ids: Sequence[int]) -> list[str]:
        """What the vocabulary calls these ids, which it knows."""
        ...


class MockEncoder:
    """The vocabulary of `--model mock`: without special tokens."""

    special = SpecialText(())
    special_ids: Mapping[str, int] = {}
    max_token_chars = 7  # the last token takes in up to three bytes more than its own four

    def encode(self, text: str, add_special_tokens: bool) -> Ids:
        return mock_vocabulary.encode(text)

    def encode_hidden(self, text: str, hidden: Mapping[str, str], add_special_tokens: bool) -> Ids:
        return mock_vocabulary.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return mock_vocabulary.decode(token_ids)

    def names(self, token_ids: Sequence[int]) -> list[str]:
        return [mock_vocabulary.piece(token_id).decode(errors="replace") for token_id in token_ids]


class TokenizerEncoder:
    """The vocabulary of a tokenizer.json."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizer = _read_tokenizer(path)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids: Mapping[str, int] = {
            token.content: token_id for token_id, token in added.items() if token.special
        }
        self.special = SpecialText(self.special_ids)
        self.max_token_chars = max(map(len, self._tokenizer.get_vocab()))
        self._literal: _LiteralTokenizer | None = None
        self._literal_lock = threading.Lock()

    def encode(self, text: str, add_special_tokens: bool) -> Ids:
        # The batch call, for it leaves out the offsets of the tokens, which take a fifth of the time.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return array("i", encoding.ids)

    def encode_hidden(self, text: str, hidden: Mapping[str, str], add_special_tokens: bool) -> Ids:
        if not hidden:
            return self.encode(text, add_special_tokens)
        with self._literal_lock:
            # Few clients write special tokens: it is made for the first who does.
            if self._literal is None:
                self._literal = _LiteralTokenizer(self._path, self.special_ids, self.special)
        return self._literal.encode(text, hidden, add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def names(self, token_ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]


class _LiteralTokenizer:
    """A tokenizer to which special tokens are ordinary text.

    It knows each of them by an alias instead, which contains a secret, so only this process can write it. The aliases
    go through the tokenizer in one pass with everything else, so all other tokens are what they would be without.
    """

    def __init__(self, path: Path, special_ids: Mapping[str, int], special: SpecialText) -> None:
        self._special = special
        self._special_ids = frozenset(special_ids.values())
        secret = secrets.token_hex(16)
        self._aliases = {text: f"<{secret}:{token_id}>" for text, token_id in special_ids.items()}
        self._tokenizer = _read_tokenizer(path)
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._tokenizer.add_tokens([_like(added[special_ids[text]], alias) for text, alias in self._aliases.items()])
        vocabulary = self._tokenizer.get_added_tokens_decoder()
        of_alias = {alias: special_ids[text] for text, alias in self._aliases.items()}
        self._true_ids = {i: of_alias[token.content] for i, token in vocabulary.items() if token.content in of_alias}

    def encode(self, text: str, hidden: Mapping[str, str], add_special_tokens: bool) -> Ids:
        text = self._special.pattern.sub(lambda match: self._aliases[match[0]], text)
        text = text.translate({ord(stand_in): original for original, stand_in in hidden.items()})
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        for token_id, is_added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            if token_id in self._special_ids and not is_added:
                token = self._tokenizer.id_to_token(token_id)
                raise RequestError(f"messages: this model cannot read {token!r} as plain text", "messages")
        return array("i", [self._true_ids.get(token_id, token_id) for token_id in encoding.ids])


def load_encoder(files: ModelFiles) -> Encoder:
    """The vocabulary of the model that `files` names. Raises FatalError when it cannot be read."""
    if not files.tokenizer_folder:
        return MockEncoder()
    return TokenizerEncoder(Path(files.tokenizer_folder) / "tokenizer.json")


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise FatalError(f"cannot read {path}: {error}; the model needs a tokenizer.json") from None
    # Some files ask for texts to be cut or filled up to a length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _like(token: AddedToken, text: str) -> AddedToken:
    """A token that is not special, but found in a text in the same way."""
    return AddedToken(
        text,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )
