"""Log-probabilities: from the columns of the wire to the two shapes that OpenAI's API has for them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any, NamedTuple

from ipc.messages import Logprobs, Reading

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


def most_likely(row: Row, limit: int) -> list[Entry]:
    """The `limit` most likely candidates, in falling order; the chosen one is among them if it is that likely."""
    distinct = {entry.token_id: entry for entry in row}
    return sorted(distinct.values(), key=lambda entry: -entry.logprob)[:limit]


def prompt_rows(readings: Iterable[Reading]) -> list[Row]:
    """The rows of a whole prompt, one a token. The first one was not predicted: it has that token alone."""
    return [row for reading in readings for row in rows_of(reading.logprobs)]


def prompt_logprobs(rows: list[Row], limit: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token its own and its `limit` most likely candidates by id; null for the
    first. A rank is null where it is only known to be behind those that were asked for."""
    shown: list[dict[str, Any] | None] = [None]
    for chosen, *top in rows[1:]:
        ranked = {entry.token_id: rank for rank, entry in enumerate(top, 1)}
        shown.append({str(entry.token_id): _prompt_entry(entry, ranked) for entry in [chosen, *top[:limit]]})
    return shown


def _prompt_entry(entry: Entry, ranked: dict[int, int]) -> dict[str, Any]:
    text = entry.piece.decode(errors="replace")
    return {"logprob": entry.logprob, "rank": ranked.get(entry.token_id), "decoded_token": text}


# -- chat ---------------------------------------------------------------------------------------------------------


def chat_logprobs(rows: Iterable[Row], limit: int) -> dict[str, Any]:
    """`choices[].logprobs` of chat: for each token itself and its `limit` most likely candidates."""
    content = []
    for row in rows:
        shown = _chat_entry(row[0])
        shown["top_logprobs"] = [_chat_entry(entry) for entry in most_likely(row, limit)]
        content.append(shown)
    return {"content": content, "refusal": None}


def _chat_entry(entry: Entry) -> dict[str, Any]:
    return {"token": entry.piece.decode(errors="replace"), "logprob": entry.logprob, "bytes": list(entry.piece)}


# -- text completions ---------------------------------------------------------------------------------------------


def completion_logprobs(
    rows: Iterable[Row], limit: int, text: str, offset: int, position: int = 0
) -> dict[str, list[Any]]:
    """`choices[].logprobs` of text completions: columns over the tokens that `text` stands for.

    `offset` is the place of `text` in the choice's whole text, `position` that of the first token in `text`, both in
    characters. The chosen token is always among the top ones, so there may be `limit` + 1 of them.
    """
    tokens: list[Any] = []
    values: list[Any] = []
    tops: list[Any] = []
    offsets: list[Any] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for row in rows:
        chosen = row[0]
        tokens.append(_name(chosen.piece))
        values.append(chosen.logprob)
        tops.append({_name(entry.piece): entry.logprob for entry in [chosen, *most_likely(row, limit)]})
        # Tokens past the end of the text were cut from it: a hidden end of sequence, a stop string.
        offsets.append(offset + max(0, min(position, len(text))))
        position += len(decoder.decode(chosen.piece))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def echoed_logprobs(rows: list[Row], limit: int, text: str) -> dict[str, list[Any]]:
    """The same over the tokens of a prompt whose text is `text`. There is nothing to tell of the first one."""
    whole = b"".join(row[0].piece for row in rows).decode(errors="replace")
    # A token in front of the text, such as a BOS, is no part of it.
    columns = completion_logprobs(rows, limit, text, 0, min(0, len(text) - len(whole)))
    columns["token_logprobs"][0] = columns["top_logprobs"][0] = None
    return columns


def _name(piece: bytes) -> str:
    """A token as text; one that holds a part of a character by its bytes, so that no two look alike."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
