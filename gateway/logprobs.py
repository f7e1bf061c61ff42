"""Log-probabilities: from the columns of the wire to the two shapes that OpenAI's API has for them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any, NamedTuple

from ipc.messages import Logprobs

LOWEST = -9999.0  # JSON has no infinity


class Entry(NamedTuple):
    """One candidate for a token."""

    token_id: int
    logprob: float
    piece: bytes


Row = list[Entry]  # the candidates for one token, the chosen one first


def rows_of(columns: Logprobs) -> list[Row]:
    """The rows that the columns hold, one a token."""
    entries = [
        Entry(token_id, max(value, LOWEST), piece)
        for token_id, value, piece in zip(columns.ids, columns.values, columns.pieces, strict=True)
    ]
    rows, start = [], 0
    for count in columns.counts:
        rows.append(entries[start : start + count])
        start += count
    return rows


def _most_likely(row: Row, limit: int) -> list[Entry]:
    """The `limit` most likely candidates, in falling order; the chosen one is among them if it is that likely."""
    distinct = {entry.token_id: entry for entry in row}
    return sorted(distinct.values(), key=lambda entry: -entry.logprob)[:limit]


# -- chat ---------------------------------------------------------------------------------------------------------


def chat_logprobs(rows: Iterable[Row], limit: int) -> dict[str, Any]:
    """`choices[].logprobs` of chat: for each token itself and its `limit` most likely candidates."""
    content = []
    for row in rows:
        shown = _chat_entry(row[0])
        shown["top_logprobs"] = [_chat_entry(entry) for entry in _most_likely(row, limit)]
        content.append(shown)
    return {"content": content, "refusal": None}


def _chat_entry(entry: Entry) -> dict[str, Any]:
    return {"token": entry.piece.decode(errors="replace"), "logprob": entry.logprob, "bytes": list(entry.piece)}


# -- text completions ---------------------------------------------------------------------------------------------


def completion_logprobs(rows: Iterable[Row], limit: int, text: str, offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of text completions: columns over the tokens that `text` stands for.

    `offset` is the place of `text` in the choice's whole text, in characters. The chosen token is always among the
    top ones, so there may be `limit` + 1 of them.
    """
    tokens, values, tops, offsets = [], [], [], []
    position = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for row in rows:
        chosen = row[0]
        tokens.append(_name(chosen.piece))
        values.append(chosen.logprob)
        tops.append({_name(entry.piece): entry.logprob for entry in [chosen, *_most_likely(row, limit)]})
        # Tokens past the end of the text were cut from it: a hidden end of sequence, a stop string.
        offsets.append(offset + min(position, len(text)))
        position += len(decoder.decode(chosen.piece))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _name(piece: bytes) -> str:
    """A token as text; one that holds a part of a character by its bytes, so that no two look alike."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
