"""All questions put to a server's chat, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmark.accuracy.questions import Question
from benchmark.accuracy.scores import Graded
from benchmark.client import Client


async def ask_all(
    client: Client,
    questions: Sequence[Question],
    body: dict[str, Any],
    concurrency: int,
    timeout_s: float,
    on_done: Callable[[], None],
) -> list[Graded]:
    """Every question with what became of it, in their order. `client` asks for whole chats; `body` is the rest."""
    graded: dict[int, Graded] = {}
    waiting = iter(enumerate(questions))

    async def worker() -> None:
        for index, question in waiting:
            messages = [{"role": "user", "content": question.prompt}]
            measured = await client.complete({**body, "messages": messages}, timeout_s)
            said = None if measured.error else question.read(measured.text)
            truncated = measured.finish_reason == "length"
            graded[index] = Graded(question, measured.text, said, truncated, measured.error)
            on_done()

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return [graded[index] for index in range(len(questions))]
