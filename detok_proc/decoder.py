"""From the token ids of one sequence to its text, one id at a time, never showing half a character.

What `push` gave for every id, and `flush` at the end, joined is what `tokenizer.decode` makes of all ids at once. The
work for one id does not grow with the sequence, and what is held back is never more than the bytes of one character
(at most three), so neither a long output nor one that never becomes valid UTF-8 costs more than any other.

The decoder stream of the tokenizers library is not used here: it decodes every token twice with its predecessors
(several times the work of the decoders here), and holds back, and decodes again and again, a text that keeps ending in
U+FFFD.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Container, Mapping
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The text of one growing sequence of token ids."""

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" when it completes none."""
        ...

    def flush(self) -> str:
        """What is left when no more ids come."""
        ...


class ByteDecoder:
    """For vocabularies in which every id stands for some bytes, and a text is those bytes as UTF-8.

    Bytes that cannot be UTF-8 become U+FFFD, one for each maximal part of a character (Unicode, chapter 3.9), which is
    what Rust's `from_utf8_lossy` does in byte-level tokenizers.
    """

    __slots__ = ("_held", "_piece", "_skipped")

    def __init__(self, piece: Callable[[int], bytes], skipped: Container[int]) -> None:
        """`piece` gives the bytes of an id; ids in `skipped` have no text."""
        self._piece = piece
        self._skipped = skipped
        self._held = b""

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        data = self._held + self._piece(token_id)
        text, used = utf_8_decode(data, "replace")
        self._held = data[used:]
        return text

    def flush(self) -> str:
        text = self._held.decode(errors="replace")
        self._held = b""
        return text


class ContextDecoder:
    """For all other vocabularies: what a token adds to the text depends on what stands before it.

    Many decoders drop the space that a text begins with, or put one between words. So a token is decoded together with
    its predecessor, and what the predecessor is alone is cut off. With nearly all decoders it only matters whether
    there is a predecessor, and then the outcome is kept.

    Tokens of a single byte ("<0xE2>") are put together here. `tokenizer.decode` shows U+FFFD for every byte of a row
    of such tokens that is not valid UTF-8 as a whole. That includes characters that were complete, and sent, before
    the first bad byte: those stay, and only what follows them becomes U+FFFD.
    """

    __slots__ = ("_after", "_alone", "_broken", "_byte_of", "_previous", "_row", "_skipped", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        alone: Mapping[int, str | None],
        after: dict[int, str] | None,
        byte_of: Mapping[int, int],
        skipped: Container[int],
    ) -> None:
        """`alone` gives the text of each id as a sequence of its own, None for an id that the tokenizer does not know.

        `after` keeps what ids add to a text that others began, for all sequences; None where that depends on which
        others. `byte_of` gives the values of single-byte tokens. Ids in `skipped`, and unknown ones, have no text.
        """
        self._tokenizer = tokenizer
        self._alone = alone
        self._after = after
        self._byte_of = byte_of
        self._skipped = skipped
        self._previous: tuple[int, str] | None = None  # the last id, and its text alone
        self._row = b""  # single bytes that are not a character yet
        self._broken = False  # the present row of single bytes cannot become UTF-8 any more

    def push(self, token_id: int) -> str:
        alone = self._alone[token_id]
        if alone is None or token_id in self._skipped:
            return ""
        byte = self._byte_of.get(token_id)
        text = self._end_row() + self._added(token_id, alone) if byte is None else self._add_byte(byte, alone)
        self._previous = (token_id, alone)
        return text

    def flush(self) -> str:
        return self._end_row()

    def _added(self, token_id: int, alone: str) -> str:
        if self._previous is None:
            return alone
        text = None if self._after is None else self._after.get(token_id)
        if text is None:
            previous, before = self._previous
            both = self._tokenizer.decode([previous, token_id], skip_special_tokens=False)
            text = both[len(before) :] if both.startswith(before) else alone
            if self._after is not None:
                self._after[token_id] = text
        return text

    def _add_byte(self, byte: int, alone: str) -> str:
        if self._broken:
            return REPLACEMENT
        self._row += bytes((byte,))
        try:
            text, used = utf_8_decode(self._row)
        except UnicodeDecodeError:
            text = REPLACEMENT * len(self._row)
            self._row = b""
            self._broken = True
            return text
        if used:
            self._row = b""
            # At the very beginning the tokenizer may drop a space, whichever way it is written.
            return alone if self._previous is None else text
        return ""

    def _end_row(self) -> str:
        text = REPLACEMENT * len(self._row)
        self._row = b""
        self._broken = False
        return text
