"""The other gateways: what a client may ask of any of them, though one alone knows the answer.

Every gateway sees the same figures of the ring. What only one of them knows, the others ask for:

about         details               answered by   with
"request"     names                 each          what it has of a request in flight: `gateway.inspection.held`
"response"    id, cancel            each          a response that is being made, cancelled first if that is wanted
"live"        run, since            each          its sequences in flight, and those that ended: `gateway.live`
"metrics"                           the first     the text of /metrics
"start_profile", "stop_profile"     the first     the answer to the request of that name, whose body are the details

The first one, `gateway`, keeps what there may be but one of: the counts that a scraper sees, and the profile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from gateway.errors import ApiError
from gateway.questions import Questions
from ipc.codec import Map
from ipc.control_messages import Lost
from ipc.messages import AskGateway, GatewayReport
from ipc.names import gateway_name, gateway_of

PATIENCE_S = 5.0
FIRST = gateway_name(0)

Handler = Callable[[Map], Awaitable[Map]]

log = logging.getLogger(__name__)


class Company:
    """Asks the other gateways, and answers them. One that is alone asks nobody."""

    def __init__(
        self,
        name: str = FIRST,
        others: Sequence[str] = (),
        send: Callable[[str, Any], None] = lambda name, message: None,
        take_rid: Callable[[], int] = lambda: 0,
        need: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`send` takes the name of a process and a message, `take_rid` gives a rid for a question, and `need` raises
        ApiError 503 unless a process is there to be asked."""
        self.name = name
        self.others = others
        self._send = send
        self._take_rid = take_rid
        self._need = need
        self._questions = Questions()
        self._handlers: dict[str, Handler] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_first(self) -> bool:
        return self.name == FIRST

    def answer(self, about: str, handler: Handler) -> None:
        """What the others ask about this is answered by `handler`, which may raise ApiError."""
        self._handlers[about] = handler

    async def ask(self, name: str, about: str, details: Map) -> Map:
        """The answer of one of the others. Raises its ApiError, or 503 when there is none."""
        self._need(name)
        question = AskGateway(self._take_rid(), about, details)
        report: GatewayReport = await self._questions.ask(name, partial(self._send, name), question, PATIENCE_S)
        if report.refusal is not None:
            raise ApiError.of(report.refusal)
        return report.body

    async def ask_first(self, about: str, details: Map) -> Map:
        """The answer of the first gateway, which may be this one. Raises as `ask` does."""
        return await (self._handlers[about](details) if self.is_first else self.ask(FIRST, about, details))

    async def ask_others(self, about: str, details: Map) -> tuple[list[Map], list[ApiError]]:
        """The answers of all others, and why there are none from the rest."""
        found = await asyncio.gather(*(self.ask(name, about, details) for name in self.others), return_exceptions=True)
        errors = [each for each in found if isinstance(each, ApiError)]
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, ApiError):
                raise each
        return [each for each in found if isinstance(each, dict)], errors

    # -- the ring's side ------------------------------------------------------------------------------------------

    def on_question(self, question: AskGateway) -> None:
        """Another gateway asks: answer it, in a task of its own."""
        asker = gateway_name(gateway_of(question.rid))
        if asker not in self.others:
            log.warning("dropped a question of %s, which is no gateway", asker)
            return
        task = asyncio.get_running_loop().create_task(self._answer(asker, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_answer(self, report: GatewayReport) -> None:
        self._questions.on_answer(report)

    def on_lost(self, lost: Lost) -> None:
        """What was asked of a gateway that is lost will not be answered."""
        error = ApiError(503, f"the server has lost a process ({lost.process}), and restarts it")
        self._questions.fail(error, lost.process)

    async def _answer(self, asker: str, question: AskGateway) -> None:
        try:
            body = await self._handlers[question.about](question.details)
            self._send(asker, GatewayReport(question.rid, body, None))
        except ApiError as error:
            self._send(asker, GatewayReport(question.rid, {}, error.refusal()))
        except Exception:
            log.exception("a question about %r could not be answered", question.about)
            failure = ApiError(500, "the request failed inside the server")
            self._send(asker, GatewayReport(question.rid, {}, failure.refusal()))
