"""The vocabulary of `--model mock`: no files, so that the ring runs without weights.

Ids 1 to 71 are the words of a fixed answer; the last one ends it. Id 0 has no text: it is what a prefill samples where
words come with decodes only. Every id from 256 on stands for four bytes of UTF-8, so a prompt has max(1, bytes // 4)
tokens, and equal ids mean equal text as far as the prefix cache is concerned.
"""

from __future__ import annotations

from collections.abc import Iterable

from ipc.codec import Ids

_ANSWER = (
    "A request enters through the gateway and becomes a row of tokens. The scheduler gives it a place in the next "
    "step beside many others, and the runner answers with one token for each. No model is loaded here, so "
    "these words never change: they only show that five processes can pass a message round a ring and that what "
    "leaves at the end is what was meant at the start."
)
WORDS = tuple(word + " " for word in _ANSWER.split())
SILENT_ID = 0
EOS_ID = len(WORDS)
MAX_MODEL_LEN = 32768
VOCAB_SIZE = 2**31 - 1
_FIRST_BYTES_ID = 256


def answer_id(position: int) -> int:
    """The id of the word at a position of the answer, which repeats when it is not ended; before it, SILENT_ID."""
    return 1 + position % len(WORDS) if position >= 0 else SILENT_ID


def encode(text: str) -> Ids:
    """The ids of a text: one for every full four bytes of UTF-8, at least one."""
    data = text.encode()
    groups = [data[i : i + 4] for i in range(0, max(len(data) - 3, 1), 4)]
    span = VOCAB_SIZE - _FIRST_BYTES_ID
    return Ids("i", [_FIRST_BYTES_ID + int.from_bytes(group, "big") % span for group in groups])


def piece(token_id: int) -> bytes:
    """The bytes that one id stands for; none for an id that stands for nothing."""
    if 1 <= token_id <= EOS_ID:
        return WORDS[token_id - 1].encode()
    if token_id < _FIRST_BYTES_ID:
        return b""
    return (token_id - _FIRST_BYTES_ID).to_bytes(4, "big").lstrip(b"\0")


def decode(token_ids: Iterable[int]) -> str:
    """The text of a row of ids."""
    return b"".join(map(piece, token_ids)).decode(errors="replace")
