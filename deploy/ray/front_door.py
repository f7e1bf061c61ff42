"""The one door: every route of the gateway, answered by the ring that the router chooses."""

from __future__ import annotations

import logging
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from deploy.ray.everywhere import merge_for
from deploy.ray.http import OF_THE_CLIENT, Answer, Head, Headers, Request, Unready, end_to_end
from deploy.ray.prompts import Prompt, prompt_of
from gateway.auth import ANTHROPIC_KEY_HEADER, ANTHROPIC_ROUTES
from gateway.dialects.anthropic_answer import error_body as anthropic_body
from gateway.errors import ApiError
from gateway.sse import DONE, event

ATTEMPTS = 3  # to find a replica whose ring is ready
ASK_ALL_TIMEOUT_S = 10.0
EVENT_STREAM = "text/event-stream"

log = logging.getLogger("ray.serve")


class FrontDoor:
    """The ingress deployment's class."""

    def __init__(self, rings: DeploymentHandle[Any], max_body_bytes: int) -> None:
        self._relay = rings.options(method_name="relay", stream=True)
        self._token_ids = rings.options(method_name="token_ids")
        self._all = rings
        self._max_body_bytes = max_body_bytes

    async def __call__(self, http: HttpRequest) -> Response:
        """One request, whatever its route."""
        path = _path_of(http)
        route = path.partition("?")[0]
        try:
            body = await self._body(http)
            request = Request(http.method, path, end_to_end(http.headers.items(), OF_THE_CLIENT), body)
            if merge := merge_for(request):
                return _whole(merge(await self._ask_all(request)))
            head, answer = await self._begin(request, await self._prompt(request))
        except ApiError as error:
            body = orjson.dumps(_error_body(error, route))
            return Response(body, error.status, error.headers, "application/json")
        response = StreamingResponse(self._parts(head, answer, route), head.status)
        response.raw_headers = _raw(head.headers)
        return response

    async def _body(self, http: HttpRequest) -> bytes:
        """The body, no longer than a ring would take it. Raises ApiError 413."""
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > self._max_body_bytes:
                raise ApiError(413, f"the request body is larger than {self._max_body_bytes >> 20} MiB")
            parts.append(part)
        return b"".join(parts)

    async def _prompt(self, request: Request) -> Prompt:
        """The request's prompt for the router, as token ids: a ring is asked for them, any one, for all have the same
        tokenizer and template."""
        prompt = prompt_of(request)
        if prompt.question is None:
            return prompt
        try:
            ids = await self._token_ids.remote(prompt.question, _authorization(request))
        except (RayError, RayServeException) as error:
            log.warning("a prompt is routed without its tokens: %s", error)
            ids = b""
        return replace(prompt, token_ids=array("i", ids), question=None)

    async def _ask_all(self, request: Request) -> list[Answer]:
        """What every ring answers; those that are lost meanwhile are left out. Raises ApiError when there is none."""
        asked = self._all.broadcast("answer", request)
        try:
            found = await asked.results_async(timeout_s=ASK_ALL_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("%s %s: %s", request.method, request.path, error)
            found = []
        answers = [answer for answer in found if isinstance(answer, Answer)]
        if not answers:
            raise ApiError(503, "no replica can be asked now")
        return sorted(answers, key=lambda answer: answer.replica)

    async def _begin(self, request: Request, prompt: Prompt) -> tuple[Head, DeploymentResponseGenerator[Any]]:
        """Have a ring answer; what it begins with. Raises ApiError.

        A ring that is not ready hands the request back untouched, and another one gets it. What a ring has begun is
        never begun again elsewhere: it may be what has broken the ring.
        """
        for _ in range(ATTEMPTS):
            answer = self._relay.remote(request, prompt)
            try:
                first = await anext(answer)
            except (RayError, RayServeException) as error:
                log.warning("%s %s: %s", request.method, request.path, error)
                raise ApiError(503, "the replica that had this request is lost; send it again") from None
            except BaseException:
                answer.cancel()  # the client has left
                raise
            if isinstance(first, Head):
                return first, answer
            assert isinstance(first, Unready)
            prompt = replace(prompt, avoid=(*prompt.avoid, first.replica))
            reason = first.reason
        raise ApiError(503, f"no replica can take this request now: {reason}")

    async def _parts(self, head: Head, answer: DeploymentResponseGenerator[Any], route: str) -> AsyncIterator[bytes]:
        """The body as it comes. A replica that dies ends a stream of events with an error, and cuts anything else."""
        is_stream = any(name.lower() == "content-type" and EVENT_STREAM in value for name, value in head.headers)
        last = b"\n\n"
        try:
            async for part in answer:
                yield part
                last = part
        except (RayError, RayServeException) as error:
            log.warning("%s: the answer is cut short: %s", route, error)
            if not is_stream or not last.endswith(b"\n\n"):
                raise
            yield _error_event(
                ApiError(503, "the replica that made this answer is lost; send the request again"), route
            )
        finally:
            answer.cancel()  # a client that has left leaves the ring, too; of an answer that is complete it is a no-op


def _path_of(http: HttpRequest) -> str:
    """The path and query as they were sent, below the application's route_prefix."""
    path = (http.scope.get("raw_path") or quote(http.scope["path"]).encode()).decode("ascii")
    query = http.scope["query_string"].decode("ascii")
    return (path.removeprefix(http.scope.get("root_path", "")) or "/") + (f"?{query}" if query else "")


def _whole(answer: Answer) -> Response:
    response = Response(answer.body, answer.head.status)
    sized = [("content-length", str(len(answer.body)))]
    response.raw_headers = _raw([*(each for each in answer.head.headers if each[0].lower() != sized[0][0]), *sized])
    return response


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _authorization(request: Request) -> str:
    """The key that a request shows, as the header that every route reads."""
    headers = {name.lower(): value for name, value in request.headers}
    if ANTHROPIC_KEY_HEADER in headers and request.route in ANTHROPIC_ROUTES:
        return f"Bearer {headers[ANTHROPIC_KEY_HEADER]}"
    return headers.get("authorization", "")


def _error_body(error: ApiError, route: str) -> dict[str, Any]:
    """An error as the clients of a route read it."""
    return anthropic_body(error) if route in ANTHROPIC_ROUTES else error.body()


def _error_event(error: ApiError, route: str) -> bytes:
    """And as the last event of a stream."""
    body = orjson.dumps(_error_body(error, route))
    return event(body, b"error") if route in ANTHROPIC_ROUTES else event(body) + DONE
