"""Every bad request gets its exact status and the field at fault, in the one error body, and starts nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import pytest

from tests.gateway.answers import talk
from tests.gateway.conftest import MAX_BODY_BYTES
from tests.gateway.scripted_ring import ScriptedRing

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}, fields]}


def part(**fields: Any) -> dict[str, Any]:
    return message(role="user", content=[{"type": "text", "text": "a"}, fields])


def called(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


PARAMETERS = "tools[0].function.parameters"


def schema(of_x: Any) -> dict[str, Any]:
    return {"tools": [tool(parameters={"type": "object", "properties": {"x": of_x}})]}


def nested(depth: int) -> dict[str, Any]:
    return {"not": nested(depth - 1)} if depth > 1 else {}


def json_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema} | fields}}


def choice(name: str) -> dict[str, Any]:
    return {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": name}}}


async def check(response: aiohttp.ClientResponse, status: int, param: str | None, message: str = "") -> None:
    """One error body everywhere, and a request id."""
    assert response.status == status, await response.text()
    assert response.headers["X-Request-Id"]
    assert response.content_type == "application/json"
    answer = await response.json()
    assert list(answer) == ["error"]
    error = answer["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == status
    assert error["param"] == param, error["message"]
    assert message in error["message"]
    assert 0 < len(error["message"]) <= 1000
    kinds = {404: "not_found_error", 503: "unavailable_error"}
    assert error["type"] == kinds.get(status, "invalid_request_error")


BOTH: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 5.0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2**63}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 10**9}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e9}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": False}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ["x"] * 40_000}, "stop"),
    ({"stop": "x" * 1025}, "stop"),
    ({"stop": ["x" * 500_000]}, "stop[0]"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"stop_token_ids": [1, 500]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [True]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ({"ignore_eos": "true"}, "ignore_eos"),
    ({"skip_special_tokens": 0}, "skip_special_tokens"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 1.0}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 10**40}, "seed"),
    ({"seed": 2**63 - 1, "n": 2}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"logit_bias": {"500": 1}}, "logit_bias.500"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"logit_bias": {"05": 1}}, "logit_bias.05"),
    ({"logit_bias": {"\N{ARABIC-INDIC DIGIT FIVE}": 1}}, "logit_bias.\N{ARABIC-INDIC DIGIT FIVE}"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias." + "9" * 86 + "..."),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(11_000)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"return_token_ids": 1}, "return_token_ids"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": "a\n"}, "request_id"),
    ({"request_id": "ä"}, "request_id"),
    ({"request_id": "a" * 257}, "request_id"),
    ({"request_id": "a", "rid": "b"}, "rid"),
    ({"rid": ["a"]}, "rid"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "a" * 1025}, "cache_salt"),
    ({"user": 5}, "user"),
    ({"metadata": "a"}, "metadata"),
    ({"metadata": {"deep": [{"number": 2**64 - 1}]}}, "metadata.deep[0].number"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": None}}, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"metadata": {"a" * 65: "x"}}, "metadata." + "a" * 65),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ({"timeout_ms": 0}, "timeout_ms"),
    ({"timeout_ms": -5}, "timeout_ms"),
    ({"timeout_ms": 1.5}, "timeout_ms"),
    ({"timeout_ms": "1000"}, "timeout_ms"),
    ({"timeout_ms": True}, "timeout_ms"),
    ({"timeout_ms": 7 * 24 * 3600 * 1000 + 1}, "timeout_ms"),
    ({"timeout_ms": 2**63 - 1}, "timeout_ms"),
    ({"timeout_ms": 10**30}, "timeout_ms"),
    ({"priority": False}, "priority"),
    ({"priority": 1.0}, "priority"),
    ({"priority": 2**63}, "priority"),
    ({"store": "yes"}, "store"),
    ({"service_tier": 1}, "service_tier"),
    ({"model": 5}, "model"),
    # The policy of the server reads none.
    ({"priority": 1}, "priority"),
    ({"priority": -1}, "priority"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": True}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    # Known, but not built.
    ({"session_id": "s"}, "session_id"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"length_penalty": 1.1}, "length_penalty"),
    # What the output may be.
    ({"bad_words": ["x"] * 129}, "bad_words"),
    ({"bad_words": ["a", ""]}, "bad_words[1]"),
    ({"bad_words": "a"}, "bad_words"),
    ({"bad_words": ["x" * 1025]}, "bad_words[0]"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [1, 500]}, "allowed_token_ids[1]"),
    ({"allowed_token_ids": [True]}, "allowed_token_ids[0]"),
    ({"allowed_token_ids": [1], "structured_outputs": {"regex": "a"}}, "allowed_token_ids"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
    (json_schema({"type": "text"}), "response_format.json_schema.schema.type"),
    (json_schema({"pattern": "(a"}), "response_format.json_schema.schema.pattern"),
    (json_schema({"enum": ["x" * (64 << 10)]}), "response_format.json_schema.schema"),
    (json_schema(nested(33)), ("response_format.json_schema.schema" + ".not" * 32)[:97] + "..."),
    (json_schema({}, name="a b"), "response_format.json_schema.name"),
    (json_schema({}, strict="yes"), "response_format.json_schema.strict"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": True, "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"type": 5}}}, "structured_outputs.json.type"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * 4097}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"choice": ["x" * 1000] * 100}}, "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "x" * (65 << 10)}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern"),
    # The names of old.
    ({"guided_json": {}}, "guided_json"),
    ({"guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": "a"}, "guided_grammar"),
    # Unknown, null or not.
    ({"nonsense": None}, "nonsense"),
    ({"x" * 3000: 1}, "x" * 97 + "..."),
]

CHAT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": ["Hello"]}, "messages[0]"),
    (message(role="wizard", content="x"), "messages[1].role"),
    (message(content="x"), "messages[1].role"),
    (message(role="user"), "messages[1].content"),
    (message(role="user", content=None), "messages[1].content"),
    (message(role="user", content=5), "messages[1].content"),
    (message(role="user", content=[]), "messages[1].content"),
    (message(role="tool", content="x"), "messages[1].tool_call_id"),
    (message(role="user", content="x", tool_call_id="c"), "messages[1].tool_call_id"),
    (message(role="assistant", content="x", tool_calls=[{"id": "c"}]), "messages[1].tool_calls[0].function"),
    (message(role="assistant", tool_calls=[called("f", "no JSON")]), "messages[1].tool_calls[0].function.arguments"),
    (message(role="assistant", tool_calls=[called("f", "[1]")]), "messages[1].tool_calls[0].function.arguments"),
    (message(role="assistant", tool_calls=[called("f", "NaN")]), "messages[1].tool_calls[0].function.arguments"),
    (message(role="assistant", tool_calls=[called("a b", "{}")]), "messages[1].tool_calls[0].function.name"),
    (message(role="assistant", tool_calls=[called("f", {})]), "messages[1].tool_calls[0].function.arguments"),
    (message(role="assistant"), "messages[1].content"),
    (message(role="user", tool_calls=[called("f", "{}")], content="x"), "messages[1].tool_calls"),
    (message(role="user", reasoning_content="x", content="x"), "messages[1].reasoning_content"),
    (message(role="assistant", reasoning_content="x", reasoning="y", content="x"), "messages[1].reasoning"),
    (message(role="user", content="x", colour="red"), "messages[1].colour"),
    (part(type="image_url", image_url={"url": "http://x/y.png"}), "messages[1].content[1].type"),
    (message(role="user", content={"type": "text", "text": "a"}), "messages[1].content"),
    (part(type="text"), "messages[1].content[1].text"),
    (part(type="text", text=5), "messages[1].content[1].text"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 9, "max_completion_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"a": "x" * 70_000}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"a": 2**63}}, "chat_template_kwargs.a"),
    ({"chat_template_kwargs": {"a": 10**30}}, "chat_template_kwargs.a"),
    ({"tools": []}, "tools"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
    ({"tools": [tool(name="a" * 129)]}, "tools[0].function.name"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description"),
    ({"tools": [tool(colour="red")]}, "tools[0].function.colour"),
    ({"tools": [tool(strict=1)]}, "tools[0].function.strict"),
    ({"tools": [tool()], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"tools": [tool(name=f"f{index}") for index in range(129)]}, "tools"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type"),
    (schema({"type": "text"}), f"{PARAMETERS}.properties.x.type"),
    (schema({"type": []}), f"{PARAMETERS}.properties.x.type"),
    (schema("string"), f"{PARAMETERS}.properties.x"),
    (schema({"pattern": "(a"}), f"{PARAMETERS}.properties.x.pattern"),
    (schema({"pattern": 5}), f"{PARAMETERS}.properties.x.pattern"),
    (schema({"pattern": "a" * 4097}), f"{PARAMETERS}.properties.x.pattern"),
    (schema({"enum": []}), f"{PARAMETERS}.properties.x.enum"),
    (schema({"required": "x"}), f"{PARAMETERS}.properties.x.required"),
    (schema({"minimum": "1"}), f"{PARAMETERS}.properties.x.minimum"),
    (schema({"maxLength": -1}), f"{PARAMETERS}.properties.x.maxLength"),
    (schema({"anyOf": [{"type": "x"}]}), f"{PARAMETERS}.properties.x.anyOf[0].type"),
    (schema({"items": [{"type": "x"}]}), f"{PARAMETERS}.properties.x.items[0].type"),
    (schema({"oneOf": {}}), f"{PARAMETERS}.properties.x.oneOf"),
    (schema({"$ref": 1}), f"{PARAMETERS}.properties.x.$ref"),
    (schema({"patternProperties": {"[": True}}), f"{PARAMETERS}.properties.x.patternProperties"),
    ({"tools": [tool(parameters={"properties": []})]}, f"{PARAMETERS}.properties"),
    ({"tools": [tool(parameters={"description": "x" * 70_000})]}, PARAMETERS),
    ({"tools": [tool(parameters=nested(33))]}, (PARAMETERS + ".not" * 32)[:97] + "..."),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": 5}, "tool_choice"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    (choice("g"), "tool_choice.function.name"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [tool()], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    # This model does not reason.
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"reasoning_effort": "some"}, "reasoning_effort"),
    ({"include_reasoning": False}, "include_reasoning"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"prompt": "x"}, "prompt"),
    ({"echo": False}, "echo"),
    ({"best_of": 1}, "best_of"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"response_format": {}}, "response_format.type"),
]

TEXT_ONLY: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"add_special_tokens": False}, "add_special_tokens"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": True}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1, True]}, "prompt"),
    ({"prompt": [1.0]}, "prompt"),
    ({"prompt": [1, 1.5]}, "prompt"),
    ({"prompt": [[1], [2, "a"]]}, "prompt[1]"),
    ({"prompt": ["a", [1]]}, "prompt[1]"),
    ({"prompt": ["a", None]}, "prompt[1]"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [500]}, "prompt"),
    ({"prompt": [[1], [2**31]]}, "prompt[1]"),
    ({"prompt": [[1], [2**64]]}, "prompt[1][0]"),
    ({"prompt": [1] * 1000}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": ["a"] * 1024, "n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 10**6}, "logprobs"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"echo": 1}, "echo"),
    ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
    ({"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens"),
    ({"max_tokens": 0, "echo": False}, "max_tokens"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"messages": HELLO}, "messages"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"max_completion_tokens": 1}, "max_completion_tokens"),
]

CASES = [(CHAT, {"messages": HELLO} | fields, param) for fields, param in BOTH + CHAT_ONLY]
CASES += [(TEXT, {"prompt": "Hello"} | fields, param) for fields, param in BOTH + TEXT_ONLY]


@pytest.mark.asyncio
async def test_bad_parameters(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["accepted"])
    for path, body, param in CASES:
        for stream in ({}, {"stream": True}) if "stream" not in body and "stream_options" not in body else ({},):
            async with http.post(path, json=body | stream) as response:
                await check(response, 400, param)
    assert ring.sent == [], "a refused request must not reach the ring"


@pytest.mark.asyncio
async def test_neutral_values_are_accepted(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    both: dict[str, Any] = {
        "priority": 0,
        "prompt_logprobs": None,
        "response_format": {"type": "text"},
        "structured_outputs": None,
        "session_id": None,
        "timeout_ms": None,
        "bad_words": [],
        "allowed_token_ids": None,
        "guided_json": None,
        "use_beam_search": False,
        "truncate_prompt_tokens": None,
        "spaces_between_special_tokens": True,
        "length_penalty": 1,
        "repetition_penalty": 1.0,
        "stop": None,
        "stream_options": None,
    }
    chat: dict[str, Any] = {
        "tools": None,
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "reasoning_effort": "none",
        "include_reasoning": True,
        "chat_template": None,
        "functions": None,
        "modalities": ["text"],
        "verbosity": "medium",
        "separate_reasoning": True,
        "logprobs": False,
    }
    text: dict[str, Any] = {"echo": False, "best_of": 2, "n": 2, "suffix": None, "logprobs": None}
    async with http.post(CHAT, json={"messages": HELLO} | both | chat) as response:
        assert response.status == 200, await response.text()
    async with http.post(TEXT, json={"prompt": "x"} | both | text) as response:
        assert response.status == 200, await response.text()


BODIES: list[tuple[bytes, str | None]] = [
    (b"", None),
    (b"{", None),
    (b'{"messages": [{"role": "user", "content": "a"}', None),
    (b"hello", None),
    (b"[]", None),
    (b'"x"', None),
    (b"null", None),
    (b"[" * 100_000, None),
    (b'{"messages":' * 50_000, None),
    (b'{"a":' * 10_000, None),
    (b'{"metadata":' + b'{"a":' * 64 + b"1" + b"}" * 65, "metadata"),
    (b'{"messages":[{"role":"user","content":"\xff"}]}', None),
    (b'{"messages":[{"role":"user","content":"\\ud800"}]}', None),
    (b'{"messages":[],"temperature":NaN}', "temperature"),
    (b'{"messages":[],"temperature":-Infinity}', "temperature"),
    (b'{"messages":[],"temperature":1e400}', "temperature"),
    (b'{"logit_bias":{"5":NaN}}', "logit_bias.5"),
    (b'{"metadata":[' + b"[]," * 100_000 + b"[]]}", None),
    (b'{"metadata":[' + b'"",' * 100_000 + b'""]}', None),
]


@pytest.mark.asyncio
async def test_bad_bodies(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    for path in (CHAT, TEXT, "/tokenize", "/detokenize"):
        for body, param in BODIES:
            async with http.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
                await check(response, 400, param)
    assert ring.sent == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_content_type(http: aiohttp.ClientSession, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    async with http.post(CHAT, data=b"{}", headers=headers) as response:
        await check(response, 415, None)


@pytest.mark.asyncio
async def test_body_too_large(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Type": "application/json"}
    async with http.post(CHAT, data=b" " * (MAX_BODY_BYTES + 1), headers=headers) as response:
        await check(response, 413, None)
        assert response.headers["Connection"] == "close"


@pytest.mark.asyncio
async def test_bodies_that_are_not_what_their_encoding_says(http: aiohttp.ClientSession) -> None:
    for coding, data, status in (("gzip", b"xx", 400), ("deflate", b"xx", 400), ("zstd", b"xx", 415)):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        async with http.post(CHAT, data=data, headers=headers) as response:
            assert response.status == status, coding
            assert "server" not in (await response.json())["error"]["message"]


@pytest.mark.asyncio
async def test_body_too_large_without_announcement(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.LINGER_S", 0.05)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await talk(url, head.encode() + chunk * (MAX_BODY_BYTES // 0x10000 + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":413' in answer


@pytest.mark.asyncio
async def test_expect_continue(ring: ScriptedRing, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks first gets its 413 before it sends the body, and a go-ahead otherwise."""
    monkeypatch.setattr("gateway.server.LINGER_S", 0.05)
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    large = f"{head}Expect: 100-continue\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    assert (await talk(url, large.encode())).startswith(b"HTTP/1.1 413 ")
    other = f"{head}Expect: the-unexpected\r\nContent-Length: 2\r\n\r\n{{}}"
    assert (await talk(url, other.encode())).startswith(b"HTTP/1.1 417 ")
    ring.script = lambda generate: ring.answer(generate, ["x"])
    body = '{"prompt": "x"}'
    small = f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    answer = await talk(url, small.encode())
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.asyncio
async def test_routes_and_methods(http: aiohttp.ClientSession) -> None:
    async with http.get("/nowhere") as response:
        await check(response, 404, None, "there is no route /nowhere; ")
    async with http.get(CHAT) as response:
        await check(response, 405, None, f"GET is not allowed on {CHAT}, which takes POST")
        assert response.headers["Allow"] == "POST"
    async with http.delete("/v1/models") as response:
        await check(response, 405, None)


@pytest.mark.asyncio
async def test_unknown_models(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    for name in ("other", "../../etc/passwd", "tiny ", "", "x" * 500_000):
        for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
            async with http.post(path, json=body | {"model": name}) as response:
                await check(response, 404, "model")
    async with http.get("/v1/models/..%2F..%2Fetc%2Fpasswd") as response:
        await check(response, 404, "model")
    assert ring.sent == []


@pytest.mark.asyncio
async def test_request_ids(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    cases: list[tuple[dict[str, str], dict[str, str], str, str]] = [
        ({"X-Request-Id": "from header"}, {}, "from header", "cmpl-from header"),
        ({}, {"request_id": "from-body"}, "from-body", "cmpl-from-body"),
        ({}, {"rid": "sglang"}, "sglang", "cmpl-sglang"),
        ({"X-Request-Id": "h"}, {"request_id": "b"}, "h", "cmpl-b"),
    ]
    for headers, fields, echoed, shown in cases:
        async with http.post(TEXT, json={"prompt": "x"} | fields, headers=headers) as response:
            assert response.headers["X-Request-Id"] == echoed
            assert (await response.json())["id"] == shown
    async with http.post(TEXT, json={"prompt": "x", "stream": True}, headers={"X-Request-Id": "s"}) as response:
        assert response.headers["X-Request-Id"] == "s"
    async with http.post(TEXT, json={}, headers={"X-Request-Id": "e"}) as response:
        assert response.headers["X-Request-Id"] == "e"
    for bad in ("a" * 257, "ä"):
        async with http.post(TEXT, json={"prompt": "x"}, headers={"X-Request-Id": bad}) as response:
            await check(response, 400, "X-Request-Id")


@pytest.mark.asyncio
async def test_errors_as_the_client_sees_them(client: openai.AsyncOpenAI) -> None:
    attempts: list[tuple[Callable[[], Any], type[openai.APIStatusError]]] = [
        (lambda: client.chat.completions.create(model="tiny", messages=HELLO, n=0), openai.BadRequestError),
        (lambda: client.chat.completions.create(model="other", messages=HELLO), openai.NotFoundError),
        (lambda: client.completions.create(model="tiny", prompt="x", temperature=3), openai.BadRequestError),
    ]
    for attempt, expected in attempts:
        with pytest.raises(expected) as caught:
            await attempt()
        assert caught.value.body is not None
        assert caught.value.type in ("invalid_request_error", "not_found_error")
