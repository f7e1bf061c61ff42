"""What a request's prompt is, as far as it matters for where the request goes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from deploy.ray.http import Request
from gateway.dialects import anthropic_request, responses_request
from gateway.dialects.anthropic_schemas import PromptRequest
from gateway.dialects.responses_schemas import ResponsesRequest
from gateway.errors import ApiError
from gateway.schemas import AnySchema, parse
from ipc.codec import Ids

Body = dict[str, Any]

# The fields of a chat that make its prompt; /tokenize takes them as /v1/chat/completions does.
OF_A_CHAT = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is known of it. Either the ids are, or a ring can be asked for them: `question` is a body of /tokenize."""

    token_ids: Ids = field(default_factory=lambda: array("i"))
    question: Body | None = None
    salt: str = ""
    conversation: str = ""  # what the client says belongs together
    avoid: tuple[str, ...] = ()  # replicas that have handed the request back


NOTHING = Prompt()


def prompt_of(request: Request) -> Prompt:
    """The prompt of a request that generates; of several the first. NOTHING for what has none, or is not understood:
    the ring that gets it will say what is wrong."""
    read = _READERS.get(request.route)
    if read is None or request.method not in ("POST", "PUT"):
        return NOTHING
    try:
        return read(orjson.loads(request.body))
    except (ApiError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        return NOTHING


def _completion(body: Body) -> Prompt:
    return _of_text(body["prompt"], body)


def _chat(body: Body) -> Prompt:
    chat = {name: body[name] for name in OF_A_CHAT if body.get(name) is not None}
    if body.get("tool_choice") == "none":
        chat.pop("tools", None)  # as the gateway does: the model is not told of them
    return Prompt(question=_model(body) | chat, **_belongs(body))


def _messages(body: Body) -> Prompt:
    return _chat(anthropic_request.prompt_body(_parsed(PromptRequest, body)))


def _responses(body: Body) -> Prompt:
    return _chat(responses_request.chat_body(_parsed(ResponsesRequest, body)))


def _sglang(body: Body) -> Prompt:
    return _of_text(body["input_ids"] if body.get("text") is None else body["text"], body)


_READERS: dict[str, Callable[[Body], Prompt]] = {
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/v1/messages": _messages,
    "/v1/responses": _responses,
    "/generate": _sglang,
}


def _of_text(prompt: Any, body: Body) -> Prompt:
    """A prompt in any of the four shapes that it may have."""
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return Prompt(array("i", prompt), **_belongs(body))
    return Prompt(question={**_model(body), "prompt": prompt}, **_belongs(body))


def _model(body: Body) -> Body:
    return {"model": body["model"]} if isinstance(body.get("model"), str) else {}


def _belongs(body: Body) -> dict[str, Any]:
    """With what the prompt shares its cache, and with what it wants to be. Raises TypeError unless both are texts."""
    salt, conversation = body.get("cache_salt") or "", body.get("prompt_cache_key") or ""
    return {"salt": salt + "", "conversation": conversation + ""}


def _parsed(schema: type[AnySchema], body: Body) -> AnySchema:
    """What a body has of a schema; the rest of it is the ring's to judge. Raises ApiError."""
    return parse(schema, {name: value for name, value in body.items() if name in schema.model_fields}, {})
