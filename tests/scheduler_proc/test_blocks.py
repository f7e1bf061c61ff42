"""The names of blocks: who shares what."""

from __future__ import annotations

from contextlib import suppress
from itertools import count

from ipc.codec import Ids
from scheduler_proc.blocks import extend_hashes, root_hash

BLOCK = 4


def names(salt: str, token_ids: list[int]) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, root_hash(salt), Ids("i", token_ids), BLOCK)
    return hashes


def test_equal_prefixes_under_one_salt_have_equal_names() -> None:
    prompt = list(range(3 * BLOCK))
    assert names("a", [*prompt, 7]) == names("a", prompt)
    assert set(names("a", prompt)).isdisjoint(names("b", prompt) + names("", prompt))
    assert names("a", [9, *prompt[1:]])[1:] != names("a", prompt)[1:]


def test_no_salt_is_written_like_a_block() -> None:
    """Else whoever sends it could put blocks of his own under the names of other people's prompts."""
    second, third = [2] * BLOCK, [3] * BLOCK
    for number in count():  # until a hash can be written in a salt, which is UTF-8: one in some ten thousand can
        hashes = names("", [number] * BLOCK + second + third)
        with suppress(UnicodeDecodeError):
            salt = (hashes[0] + Ids("i", second).tobytes()).decode()
            break
    assert names(salt, third) != hashes[2:]
