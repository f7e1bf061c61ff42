"""Who counts the tokens of a text: the server (`/tokenize`), a tokenizer's file, or nobody.

Prompts of an exact length need somebody who counts as the server does. What an answer has in tokens is the server's to
say, in `usage`; only for a server that says nothing is the text counted, with the tokenizer's file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from benchmark.connection_pool import ConnectionPool

BYTES_PER_TOKEN = 4  # of English text, about
ONE_TOKEN = "a"

Question = Callable[[str], dict[str, Any]]  # a text as the body of a request for /tokenize


class TokenizerFileError(ValueError):
    """There is no tokenizer in that place; the text says what was looked for."""


class Counter(Protocol):
    """Counts the tokens that a prompt will have for the server."""

    about: str  # how it counts, for the report
    overhead: int  # tokens of every prompt that are not its text's: a chat template's, special ones

    async def count(self, text: str) -> int:
        """The number of tokens of a prompt. Raises OSError when the server cannot be reached."""


class ServerCounter:
    """Asks the server, which knows its chat template and its special tokens."""

    def __init__(self, pool: ConnectionPool, make_question: Question, about: str, overhead: int) -> None:
        self.about = about
        self.overhead = overhead
        self._pool = pool
        self._make_question = make_question

    async def count(self, text: str) -> int:
        status, body = await self._pool.ask("POST", "/tokenize", self._make_question(text))
        count = _count_in(status, body)
        if count is None:
            raise OSError(f"/tokenize answers with {status}: {str(body)[:200]}")
        return count


class FileCounter:
    """Uses a tokenizer.json. What a chat template adds is not counted."""

    def __init__(self, path: str) -> None:
        """`path` is the file, or the folder that it is in. Raises TokenizerFileError."""
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise TokenizerFileError(f"--tokenizer: there is no file {file}; name a tokenizer.json, or its folder")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise TokenizerFileError(f"--tokenizer {file}: {error}") from None
        self.about = f"by {file.name} of {file.parent.name or file.parent}, without a chat template"
        self.overhead = len(self._tokenizer.encode(ONE_TOKEN).ids) - self.count_answer(ONE_TOKEN)

    async def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)

    def count_answer(self, text: str) -> int:
        """The tokens of an answer, to which nothing is added."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class RoughCounter:
    """Nobody can be asked: so many bytes are taken for a token."""

    overhead = 0
    about = (
        f"ROUGHLY, as a token for {BYTES_PER_TOKEN} bytes: the server has no /tokenize, and --tokenizer is not given"
    )

    async def count(self, text: str) -> int:
        return -(-len(text.encode()) // BYTES_PER_TOKEN)


async def find_counter(pool: ConnectionPool, model: str, chat: bool, tokenizer: str) -> Counter:
    """The best counter there is: `tokenizer` if it is given, else the server, else the rough one.

    Raises TokenizerFileError, and OSError when there is no server.
    """
    if tokenizer:
        return FileCounter(tokenizer)
    questions: list[tuple[Question, str]] = []
    if chat:
        questions.append(
            (
                lambda text: {"model": model, "messages": [{"role": "user", "content": text}]},
                "by the server's /tokenize, chat template included",
            )
        )
    without = ", without the chat template" if chat else ""
    questions += [
        (lambda text: {"model": model, "prompt": text}, f"by the server's /tokenize{without}"),
        (lambda text: {"content": text, "add_special": not chat}, f"by the server's /tokenize{without}"),  # llama.cpp's
    ]
    for make_question, about in questions:
        # llama.cpp takes a question that it does not know for an empty text, of no tokens.
        if count := _count_in(*await pool.ask("POST", "/tokenize", make_question(ONE_TOKEN))):
            return ServerCounter(pool, make_question, about, count - 1)
    return RoughCounter()


def _count_in(status: int, body: Any) -> int | None:
    """The number of tokens that an answer of /tokenize tells; None when it is no such answer."""
    if status != 200 or not isinstance(body, dict):
        return None
    if isinstance(body.get("count"), int):
        return int(body["count"])
    return len(body["tokens"]) if isinstance(body.get("tokens"), list) else None
