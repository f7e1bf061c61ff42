"""What this gateway has asked other processes, and waits for: each question has a rid of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.errors import ApiError


class Question(Protocol):
    """A message that is answered with one under the same rid."""

    rid: int


class Questions:
    """Those that are open, by rid, and which process each was sent to."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, asyncio.Future[Any]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def ask(
        self, process: str, send: Callable[[Any], None], question: Question, patience_s: float | None = None
    ) -> Any:
        """Send a question to a process; what comes back. Raises ApiError 503 when nothing does in that time."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[question.rid] = process, future
        try:
            async with asyncio.timeout(patience_s):
                send(question)
                return await future
        except TimeoutError:
            raise ApiError(503, f"the {process} gave no answer within {patience_s:g} s") from None
        finally:
            del self._open[question.rid]

    def on_answer(self, answer: Question) -> None:
        """An answer has come; nobody may wait for it any more."""
        _, future = self._open.get(answer.rid, ("", None))
        if future is not None and not future.done():
            future.set_result(answer)

    def fail(self, error: ApiError, process: str | None = None) -> None:
        """No answer will come from this process, or from any."""
        for asked, future in self._open.values():
            if process in (None, asked) and not future.done():
                future.set_exception(error)
