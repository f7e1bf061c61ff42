"""What is asked: built-in text of an exact number of tokens, or the prompts of a dataset.

Built-in prompts are words drawn from a seed, so that no two of them share a beginning: no level finds in the prefix
cache what a level before it has left there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmark.datasets import DatasetError, Row
from benchmark.serving.tokens import Counter

TEXT = (
    "the of and to in that was his for with had not but her this from they have which she you were all him would there "
    "their been said who them some could time very into then upon what only about little other down over after more "
    "before great such sea like man old ship day night hand long made way head still well must here never life good "
    "eyes first last place while where again water without house round world might light down under those mind thing "
    "himself come heart against thought though far part wind men work went back own every seemed let white "
    "captain stand full whole between small land know air face line deep side soon turned left strange ever tell boat "
    "towards high black cried much morning three think half seen things look found boats put going home many name days"
)
WORDS = TEXT.split()
PADDING = " The quick brown fox jumps over the lazy dog."
WILDCHAT_CHARS = range(21, 50_000)  # MiniEngine's bounds of a first turn
DEFAULT_LEN = 1024
TRIES = 5  # texts, until one can be cut to the length that is wanted
MAX_CUTS = 30  # of one text


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how many tokens it is to be answered with."""

    prompt: str
    prompt_tokens: int  # as it was counted beforehand
    output_tokens: int


class PromptError(ValueError):
    """The prompts that are wanted cannot be made; the text says why."""


class Cutter:
    """Cuts texts to a number of tokens, with as few counts as it can."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._chars_per_token = 5.0

    async def cut(self, text: str, tokens: int) -> tuple[str, int]:
        """A beginning of `text` with `tokens` tokens, and how many it really has.

        That number differs only when no beginning has the right one. A tokenizer's counts do not quite rise with the
        length; what matters is that around any length there are some of every count.
        """
        low, high = 0, len(text) + 1  # a length that is too short, and one that is too long or that there is not
        at = min(max(1, round(tokens * self._chars_per_token)), len(text))
        best = ("", 0)
        for _ in range(MAX_CUTS):
            count = await self._counter.count(text[:at])
            if abs(count - tokens) < abs(best[1] - tokens) or not best[0]:
                best = text[:at], count
            if count == tokens:
                self._chars_per_token = at / count
                break
            if count < tokens:
                low = at
            else:
                high = at
            if high - low <= 1:
                break
            step = round((tokens - count) * at / max(count, 1)) or (1 if count < tokens else -1)
            at = min(max(at + step, low + 1), high - 1)
        return best

    async def words(self, rng: random.Random, tokens: int) -> tuple[str, int]:
        """Random words with so many tokens. Raises PromptError when they cannot be had."""
        if tokens <= self._counter.overhead:
            raise PromptError(
                f"--input-len {tokens}: chat template and special tokens alone are {self._counter.overhead}"
            )
        best = ("", 0)
        for _ in range(TRIES):
            text, count = await self.cut(" ".join(rng.choices(WORDS, k=tokens + 8)), tokens)
            if not best[0] or abs(count - tokens) < abs(best[1] - tokens):
                best = text, count
            if count == tokens:
                return best
        return best


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long prompts and answers are, in tokens; None leaves it to the dataset."""

    input_len: int | None
    output_len: int | None
    randomness: float  # from 1 on all are that long; below, they are drawn from [len * randomness, len]

    def draw(self, rng: random.Random, length: int) -> int:
        if self.randomness >= 1:
            return length
        return rng.randint(max(1, int(length * self.randomness)), length)


async def built_in(count: int, lengths: Lengths, counter: Counter, seed: str) -> list[Request]:
    """Prompts of words. Raises PromptError."""
    rng, cutter = random.Random(seed), Cutter(counter)
    requests = []
    for _ in range(count):
        tokens = lengths.draw(rng, lengths.input_len or DEFAULT_LEN)
        text, has = await cutter.words(rng, tokens)
        requests.append(Request(text, has, lengths.draw(rng, lengths.output_len or DEFAULT_LEN)))
    return requests


# -- datasets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """What a row of a dataset asks, and what it knows of the answer."""

    prompt: str
    answer: str = ""
    output_tokens: int = 0  # 0 when the row does not say


def turn_of(row: Row) -> Turn | None:
    """The first question of a row; None when the row has none that is wanted. Raises PromptError for unknown columns.

    Known are the columns of ShareGPT (conversations), WildChat (conversation), chats (messages), and our own and vLLM's
    custom files (prompt, and perhaps output_tokens).
    """
    if isinstance(row.get("prompt"), str):
        return Turn(row["prompt"], output_tokens=int(row.get("output_tokens") or 0)) if row["prompt"] else None
    if isinstance(turns := row.get("conversations"), list):  # ShareGPT
        first, second = (*turns, None, None)[:2]
        if not first or not second or first.get("from") not in ("human", "user") or not first.get("value"):
            return None
        return Turn(first["value"], answer=second.get("value") or "")
    for column in ("conversation", "messages"):
        if isinstance(turns := row.get(column), list):
            text = next((turn.get("content") for turn in turns if turn.get("role") == "user"), None)
            if not isinstance(text, str) or not text or (column == "conversation" and len(text) not in WILDCHAT_CHARS):
                return None
            return Turn(text)
    raise PromptError(
        f"a row has the columns {', '.join(sorted(row))}; known are prompt, conversations (ShareGPT), conversation"
        " (WildChat) and messages"
    )


def read_turns(rows: Iterable[Row], wanted: int, seed: int) -> list[Turn]:
    """At most five times as many questions as are wanted, shuffled. Raises PromptError when there are none."""
    turns: list[Turn] = []
    for row in rows:
        turn = turn_of(row)
        if turn is not None:
            turns.append(turn)
        if len(turns) >= 5 * wanted:
            break
    if not turns:
        raise PromptError("--dataset-path: no row has a question")
    random.Random(seed).shuffle(turns)
    return turns


async def from_turns(turns: Iterator[Turn], count: int, lengths: Lengths, counter: Counter, seed: str) -> list[Request]:
    """The next prompts of a dataset. Those that are to have a length are cut or padded to it.

    An answer is as long as `lengths` says, else as the row says, else as the row's own answer. Raises DatasetError.
    """
    rng, cutter = random.Random(seed), Cutter(counter)
    requests = []
    for _ in range(count):
        turn = next(turns)
        if lengths.input_len is None:
            text, has = turn.prompt, await counter.count(turn.prompt)
        else:
            tokens = lengths.draw(rng, lengths.input_len)
            padding = PADDING * (tokens // 8 + 2)  # of ten tokens or so each
            text, has = await cutter.cut(turn.prompt + padding, tokens)
        output = lengths.output_len or turn.output_tokens
        if not output and turn.answer:
            output = await counter.count(turn.answer) - counter.overhead
        if output < 1:
            raise DatasetError("--dataset-path: its rows do not say how long the answers are; give --output-len")
        requests.append(Request(text, has, lengths.draw(rng, output)))
    return requests
