"""Threads for the work that may take long: templates and long texts.

The answers come back through the process's own inbox, so that its loop waits at one place, and the loop alone speaks to
the other processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ipc.sockets import Outbox


def thread_number() -> int:
    """Which thread of the pool this is, from 1 on; 0 for any other thread."""
    return int(threading.current_thread().name.partition("tokenizer-")[2] or 0)


class Pool:
    """A few threads that answer questions in the order in which they are free to."""

    def __init__(self, num_threads: int, answer: Callable[[Any], Any], inbox: Outbox) -> None:
        """`answer` must not raise; what it gives is sent to `inbox`, which then belongs to the pool."""
        self._answer = answer
        self._questions: SimpleQueue[Any] = SimpleQueue()  # None ends a thread
        self._num_threads = num_threads
        self._inbox: Outbox | None = inbox
        self._lock = threading.Lock()  # a socket is used by one thread at a time
        for number in range(1, num_threads + 1):
            threading.Thread(target=self._work, name=f"tokenizer-{number}", daemon=True).start()

    def ask(self, question: Any) -> None:
        """Have a message answered. Never blocks: how many are under way is bounded by admission."""
        self._questions.put(question)

    def close(self) -> None:
        """Send nothing any more. Does not wait for threads at work: they are ended with the process."""
        with self._lock:
            if self._inbox is not None:
                self._inbox.close()
                self._inbox = None
        for _ in range(self._num_threads):
            self._questions.put(None)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            answer = self._answer(question)
            with self._lock:
                if self._inbox is None:
                    return
                self._inbox.send(answer)
