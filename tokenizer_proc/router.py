"""Where each message goes next, in an order that keeps an abort behind its request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ipc.control_messages import Lost
from ipc.messages import Abort, Detokenize, Generate, LookUp, Submit, Tokenize
from ipc.names import gateway_name, gateway_of
from tokenizer_proc.preparer import Answer, Question

# What is shorter is answered at once: handing it to a thread and back takes longer (about 100 µs). A chat never is,
# because nobody knows what its template does.
MAX_INLINE_CHARS = 400
MAX_INLINE_IDS = 4096

log = logging.getLogger(__name__)


class Router:
    """The loop's state: which requests are with the pool, and which aborts wait for them."""

    def __init__(
        self,
        answer: Callable[[Question], Answer],
        ask_pool: Callable[[Question], None],
        send: Callable[[str, Any], None],
    ) -> None:
        """`answer` works at once; `ask_pool` has the answer come in later as a message; `send` takes a process name."""
        self._answer = answer
        self._ask_pool = ask_pool
        self._send = send
        self._in_pool: dict[int, int] = {}  # each sequence's rid -> the first rid of its request
        self._held_aborts: dict[int, list[int]] = {}  # first rid of a request -> the rids to abort after it
        self._num_requests = 0
        self._num_prompt_tokens = 0

    def stats(self) -> dict[str, Any]:
        """Figures of this process: sequences now with the pool; requests and prompt tokens since its start."""
        return {
            "in_pool": len(self._in_pool),
            "requests": self._num_requests,
            "prompt_tokens": self._num_prompt_tokens,
        }

    def handle(self, message: Any) -> None:
        """Take in one message: of a gateway, or an answer of the pool."""
        match message:
            case Generate():
                self._generate(message)
            case Tokenize() | Detokenize():
                if is_short(message):
                    self.handle(self._answer(message))
                else:
                    self._ask_pool(message)
            case Abort(rids=rids):
                self._abort(rids)
            case Submit():
                self._submit(message)
            case LookUp(rid=rid):
                self._send(gateway_name(gateway_of(rid)), message)
            case Lost():
                pass  # gateways abort what they have ended because of it
            case _:
                log.warning("dropped a %s: not expected here", type(message).__name__)

    def _generate(self, generate: Generate) -> None:
        self._num_requests += 1
        if is_short(generate):
            self.handle(self._answer(generate))
            return
        for rid in range(generate.rid, generate.rid + generate.n):
            self._in_pool[rid] = generate.rid
        self._ask_pool(generate)

    def _submit(self, submit: Submit) -> None:
        self._num_prompt_tokens += len(submit.token_ids)
        self._send("scheduler", submit)
        for rid in range(submit.rid, submit.rid + submit.n):
            self._in_pool.pop(rid, None)
        held = self._held_aborts.pop(submit.rid, None)
        if held is not None:
            self._send("scheduler", Abort(held))

    def _abort(self, rids: list[int]) -> None:
        passing = []
        for rid in rids:
            first = self._in_pool.get(rid)
            if first is None:
                passing.append(rid)
            else:
                self._held_aborts.setdefault(first, []).append(rid)
        if passing:
            self._send("scheduler", Abort(passing))


def is_short(question: Question) -> bool:
    """Whether a question takes less time to answer than to hand on."""
    match question:
        case Detokenize(token_ids=token_ids):
            return len(token_ids) <= MAX_INLINE_IDS
        case Generate(grammar=[_, *_]):
            return False  # it is compiled, to see whether it can be
        case Generate(ids=ids) if ids is not None:
            return True  # only looked through
        case _:
            return question.text is not None and len(question.text) <= MAX_INLINE_CHARS
