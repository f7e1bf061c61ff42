"""/v1/messages, seen through Anthropic's own client and event by event."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import anthropic
import orjson
import pydantic
import pytest
import pytest_asyncio

from ipc.config import GatewayConfig
from ipc.messages import ERROR, LENGTH, STOP, Generate, LookUp, Refusal, Tokenize
from tests.gateway.scripted_ring import CONFIG, ScriptedRing, head, tail
from tests.gateway.test_reasoning import qwen

PATH = "/v1/messages"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [{"name": "add", "description": "Add", "input_schema": {"type": "object", "properties": {}}}]
CALL = ["Let me see.", '\n{"name": "add", "argu', 'ments": {"a": ', "1}}"]


@pytest_asyncio.fixture
async def claude(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
        yield client


def events_in(data: bytes) -> list[tuple[str, Any]]:
    """The events of a stream as names and data."""
    events = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, line = block.split("\n")
        events.append((name.removeprefix("event: "), orjson.loads(line.removeprefix("data: "))))
    assert all(name == event["type"] for name, event in events)
    return events


@pytest.mark.asyncio
async def test_unary(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    ring.script = lambda generate: ring.answer(generate, ["One", " two"], STOP)
    message = await claude.messages.create(model="tiny", max_tokens=9, messages=HELLO, system="Be brief")
    assert message.id.startswith("msg_")
    assert (message.role, message.model, message.stop_reason, message.stop_sequence) == (
        "assistant",
        "tiny",
        "end_turn",
        None,
    )
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "One two"}]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)
    assert message.usage.cache_read_input_tokens == 2
    generate = await ring.next(Generate)
    assert generate.chat is not None
    assert generate.chat["messages"] == [{"role": "system", "content": "Be brief"}, *HELLO]
    assert generate.sampling.max_tokens == 9


@pytest.mark.asyncio
async def test_stream(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    ring.script = lambda generate: ring.answer(generate, CALL, STOP)
    async with claude.messages.stream(model="tiny", max_tokens=9, messages=HELLO, tools=TOOLS) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert text == "Let me see."
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use"]
    call: Any = message.content[1]
    assert (call.name, call.input) == ("add", {"a": 1})
    assert message.usage.output_tokens == 4


@pytest.mark.asyncio
async def test_every_event(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.template = qwen
    words = ["<think>Hm</think>", *CALL, '\n{"name": "add", "arguments": {}}']
    ring.script = lambda generate: ring.answer(generate, words, STOP)
    body = {"messages": HELLO, "max_tokens": 99, "tools": TOOLS, "stream": True}
    async with http.post(PATH, json=body) as response:
        assert response.content_type == "text/event-stream"
        events = events_in(await response.read())
    assert [name for name, _ in events] == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    assert events[0][1]["message"]["content"] == []
    assert events[0][1]["message"]["usage"]["input_tokens"] == 3
    starts = [event for name, event in events if name == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "text", "tool_use", "tool_use"]
    deltas = [event["delta"] for name, event in events if name == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "Hm"},
        {"type": "text_delta", "text": "Let me see."},
        {"type": "input_json_delta", "partial_json": '{"a": 1}'},
        {"type": "input_json_delta", "partial_json": "{}"},
    ]
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == 6


@pytest.mark.asyncio
async def test_why_it_ended(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"], LENGTH)
    assert (await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO)).stop_reason == "max_tokens"
    ring.script = lambda generate: ring.bring(
        heads=[head(generate.rid)], tails=[tail(generate.rid, 1, STOP, stop_string="END")]
    )
    message = await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


@pytest.mark.asyncio
async def test_what_reaches_the_ring(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"], STOP)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]},
                {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "no"},
                {"type": "text", "text": "c"},
            ],
        },
        {"role": "assistant", "content": "It is"},
    ]
    body = {
        "model": "tiny",
        "messages": messages,
        "max_tokens": 5,
        "system": [{"type": "text", "text": "S"}],
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "stop_sequences": ["A", "B"],
        "metadata": {"user_id": "ann"},
        "tools": TOOLS,
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "service_tier": "auto",
        "thinking": {"type": "disabled"},
    }
    async with http.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()
    generate = await ring.next(Generate)
    assert generate.chat is not None
    assert generate.chat["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "b"}],
            "reasoning_content": "Hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "2"},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "It is"},
    ]
    assert generate.chat["continue_final_message"] is True
    assert generate.chat["tools"][0]["function"]["parameters"] == TOOLS[0]["input_schema"]
    assert (generate.sampling.temperature, generate.sampling.top_p, generate.sampling.top_k) == (0.5, 0.5, 5)
    assert generate.output.stop == ["A", "B"]
    assert generate.tenant


@pytest.mark.asyncio
async def test_count_tokens(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    asking = asyncio.create_task(claude.messages.count_tokens(model="tiny", messages=HELLO, tools=TOOLS, system="S"))
    question = await ring.next(Tokenize)
    assert question.chat is not None
    assert [message["role"] for message in question.chat["messages"]] == ["system", "user"]
    assert "tools" in question.chat
    ring.engine.on_answer(LookUp(question.rid, "", array("i", range(7)), None))
    assert (await asking).input_tokens == 7


BLOCK = "messages[0].content[0]"


@pytest.mark.asyncio
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
async def test_a_call_that_must_be(ring: ScriptedRing, http: aiohttp.ClientSession, choice: Any) -> None:
    ring.script = lambda generate: ring.answer(generate, ['{"name": "add", "arguments": {}}'], STOP)
    body = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    async with http.post("/v1/messages", json=body | {"tool_choice": choice}) as response:
        answer = await response.json()
    assert answer["stop_reason"] == "tool_use"
    assert [(block["type"], block["name"]) for block in answer["content"]] == [("tool_use", "add")]
    assert (await ring.next(Generate)).grammar[0].param == "tool_choice"


@pytest.mark.asyncio
async def test_a_structured_text(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    class Age(pydantic.BaseModel):
        years: int

    ring.script = lambda generate: ring.answer(generate, ['{"years"', ": 7}"], STOP)
    message = await claude.messages.parse(model="tiny", max_tokens=9, messages=HELLO, output_format=Age)
    assert message.parsed_output == Age(years=7)
    [part] = (await ring.next(Generate)).grammar
    assert part.kind == "json"
    assert '"years"' in part.text


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, BLOCK),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, f"{BLOCK}.text"),
    ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, BLOCK),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, BLOCK),
    ({"temperature": 1.5}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f", "input_schema": {"type": "x"}}]}, "tools[0].input_schema.type"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 1}}}}, "output_config.format.schema.type"),
    ({"output_config": {"effort": "low"}}, "output_config.effort: this model does not reason"),
    (
        {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}},
        "output_config.effort: thinking is disabled",
    ),
    ({"seed": 5}, "seed"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("fields", "named"), BAD)
async def test_bad_requests(
    ring: ScriptedRing, http: aiohttp.ClientSession, fields: dict[str, Any], named: str
) -> None:
    async with http.post(PATH, json={"messages": HELLO, "max_tokens": 5} | fields) as response:
        assert response.status == 400, await response.text()
        answer = await response.json()
    assert set(answer) == {"type", "error", "request_id"}
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert named in answer["error"]["message"]
    assert ring.sent == []


@pytest.mark.asyncio
async def test_errors_as_the_client_sees_them(ring: ScriptedRing, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="other", max_tokens=1, messages=HELLO)
    refusal = Refusal(500, "server_error", "the step failed")
    ring.script = lambda generate: ring.bring(
        heads=[head(generate.rid)],
        rows=[(generate.rid, "a", [1])],
        tails=[tail(generate.rid, 0, ERROR, refusal=refusal)],
    )
    with pytest.raises(anthropic.InternalServerError):
        await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO)
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1])])

    async def read_all() -> None:
        async with claude.messages.stream(model="tiny", max_tokens=1, messages=HELLO) as stream:
            async for event in stream:
                if event.type == "content_block_delta":
                    rid = (await ring.next(Generate)).rid
                    ring.bring(tails=[tail(rid, 1, ERROR, refusal=refusal)])

    ring.sent.clear()
    with pytest.raises(anthropic.APIStatusError, match="the step failed"):
        await read_all()


class TestKeys:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, api_key=["k"])

    @pytest.mark.asyncio
    async def test_the_header_of_its_own(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, claude: anthropic.AsyncAnthropic
    ) -> None:
        ring.script = lambda generate: ring.answer(generate, ["x"], STOP)
        await claude.messages.create(model="tiny", max_tokens=1, messages=HELLO)
        for headers, status in (({"x-api-key": "wrong"}, 401), ({}, 401), ({"Authorization": "Bearer k"}, 200)):
            async with http.post(PATH, json={"messages": HELLO, "max_tokens": 1}, headers=headers) as response:
                assert response.status == status
                if status == 401:
                    assert (await response.json())["error"]["type"] == "authentication_error"
        async with http.get("/v1/models", headers={"x-api-key": "k"}) as response:
            assert response.status == 401, "elsewhere the header means nothing"
