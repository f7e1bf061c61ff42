"""/v1/responses, seen through OpenAI's client and event by event."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pydantic
import pytest

from ipc.messages import ERROR, LENGTH, STOP, Generate, Refusal
from tests.gateway.answers import next_event
from tests.gateway.scripted_ring import ScriptedRing, head, tail
from tests.gateway.test_anthropic import CALL, events_in
from tests.gateway.test_reasoning import qwen

PATH = "/v1/responses"
TOOLS: Any = [{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}]


@pytest.mark.asyncio
async def test_unary(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, ["One", " two"], STOP)
    answer = await client.responses.create(model="tiny", input="Hello", instructions="Be brief", max_output_tokens=9)
    assert answer.id.startswith("resp_")
    assert (answer.status, answer.output_text, answer.model) == ("completed", "One two", "tiny")
    assert answer.error is None
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 2, 7)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    item: Any = answer.output[0]
    assert len(answer.output) == 1
    assert (item.type, item.status) == ("message", "completed")
    generate = await ring.next(Generate)
    assert generate.chat is not None
    assert generate.chat["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
    ]
    assert generate.sampling.max_tokens == 9


@pytest.mark.asyncio
async def test_an_answer_that_is_cut(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, ["One"], LENGTH)
    answer = await client.responses.create(model="tiny", input="Hello", max_output_tokens=1)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.asyncio
async def test_the_clients_own_joining_of_a_stream(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, CALL, STOP)
    async with client.responses.stream(model="tiny", input="Hello", tools=TOOLS) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Let me see."
    call: Any = final.output[1]
    assert (call.type, call.name, call.arguments) == ("function_call", "add", '{"a": 1}')


@pytest.mark.asyncio
async def test_every_event(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.template = qwen
    ring.script = lambda generate: ring.answer(generate, ["<think>Hm</think>", *CALL], STOP)
    async with http.post(PATH, json={"input": "Hello", "stream": True, "tools": TOOLS}) as response:
        events = events_in(await response.read())
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    text = ["content_part.added", "{}.delta", "{}.done", "content_part.done"]
    arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert [name.removeprefix("response.") for name, _ in events] == [
        "created",
        "in_progress",
        *("output_item.added", *(name.format("reasoning_text") for name in text), "output_item.done"),
        *("output_item.added", *(name.format("output_text") for name in text), "output_item.done"),
        *("output_item.added", *arguments, "output_item.done"),
        "completed",
    ]
    final = events[-1][1]["response"]
    done = [event["item"] for name, event in events if name == "response.output_item.done"]
    assert final["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert done[0]["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
    assert events[0][1]["response"]["output"] == []


@pytest.mark.asyncio
async def test_what_was_answered_can_be_sent_back(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.template = qwen
    ring.script = lambda generate: ring.answer(generate, ["<think>Hm</think>", *CALL], STOP)
    first = await client.responses.create(model="tiny", input="Hello", tools=TOOLS)
    call: Any = first.output[2]
    conversation: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        *(item.to_dict() for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "2"},
        {"role": "assistant", "content": "It is 2."},
        {"role": "user", "content": "And?"},
    ]
    await ring.next(Generate)
    await client.responses.create(model="tiny", input=conversation, tools=TOOLS)
    generate = await ring.next(Generate)
    assert generate.chat is not None
    messages = generate.chat["messages"]
    function = {"name": "add", "arguments": {"a": 1}}
    assert messages == [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "2"},
        {"role": "assistant", "content": "It is 2."},
        {"role": "user", "content": "And?"},
    ]


@pytest.mark.asyncio
async def test_retrieve_and_cancel_while_it_is_alive(
    ring: ScriptedRing, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "One", [1])])
    async with http.post(PATH, json={"input": "Hello", "stream": True, "request_id": "r"}) as response:
        for _ in range(5):
            await response.content.readline()  # the name of the event
            await next_event(response)
        alive = await client.responses.retrieve("resp_r")
        assert (alive.status, alive.output_text) == ("in_progress", "One")
        async with http.post(PATH, json={"input": "Hello", "request_id": "r"}) as second:
            assert second.status == 409
        assert (await client.responses.cancel("resp_r")).status == "cancelled"
        last = events_in(await response.read())[-1]
    assert last[0] == "response.failed"
    assert "was cancelled" in last[1]["response"]["error"]["message"]
    assert ring.aborted() == [(await ring.next(Generate)).rid]
    for attempt in (client.responses.retrieve("resp_r"), client.responses.cancel("resp_r")):
        with pytest.raises(openai.NotFoundError):
            await attempt


@pytest.mark.asyncio
async def test_cancel_of_one_that_is_waited_for(
    ring: ScriptedRing, client: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    waiting = asyncio.create_task(http.post(PATH, json={"input": "Hello", "request_id": "r"}))
    await ring.next(Generate)
    await client.responses.cancel("resp_r")
    response = await waiting
    assert response.status == 409
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.asyncio
async def test_a_failure_in_a_stream(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    refusal = Refusal(500, "server_error", "the step failed")

    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "One", [1])])
    async with http.post(PATH, json={"input": "Hello", "stream": True}) as response:
        await response.content.readline()
        rid = (await ring.next(Generate)).rid
        ring.bring(tails=[tail(rid, 1, ERROR, refusal=refusal)])
        rest = await response.read()
    name, last = events_in(rest.partition(b"\n\n")[2])[-1]
    assert name == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the step failed"}


@pytest.mark.asyncio
async def test_neutral_values_are_accepted(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"], STOP)
    body = {
        "input": "Hello",
        "background": False,
        "include": [],
        "previous_response_id": None,
        "reasoning": {"effort": "none", "summary": None},
        "stream_options": {"include_obfuscation": False},
        "prompt_cache_retention": None,
        "store": True,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "metadata": {"a": "b"},
        "user": "ann",
        "service_tier": "auto",
    }
    async with http.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()


@pytest.mark.asyncio
async def test_a_structured_text(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    class Age(pydantic.BaseModel):
        years: int

    ring.script = lambda generate: ring.answer(generate, ['{"years"', ": 7}"], STOP)
    answer = await client.responses.parse(model="tiny", input="How old?", text_format=Age)
    assert answer.output_parsed == Age(years=7)
    [part] = (await ring.next(Generate)).grammar
    assert part.kind == "json"
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


@pytest.mark.asyncio
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"}])
async def test_a_call_that_must_be(ring: ScriptedRing, http: aiohttp.ClientSession, choice: Any) -> None:
    ring.script = lambda generate: ring.answer(generate, ['{"name": "add", "arguments": {}}'], STOP)
    async with http.post(PATH, json={"input": "x", "tools": TOOLS, "tool_choice": choice}) as response:
        [item] = (await response.json())["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "add", "{}")
    assert (await ring.next(Generate)).grammar[0].param == "tool_choice"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ("response_format.json_schema.schema", "text.format.schema"),
        ("max_tokens", "max_output_tokens"),
        ("messages", "input"),
        ("tools[0].function.parameters.type", "tools[0].parameters.type"),
    ],
)
async def test_what_the_ring_refuses_is_named_as_here(
    ring: ScriptedRing, http: aiohttp.ClientSession, theirs: str, own: str
) -> None:
    refusal = Refusal(400, "invalid_request_error", f"{theirs}: it cannot be", theirs)
    ring.script = lambda generate: ring.refuse(generate, refusal)
    for stream in (False, True):
        async with http.post(PATH, json={"input": "Hello", "stream": stream}) as response:
            error = (await response.json())["error"]
        assert (response.status, error["param"], error["message"]) == (400, own, f"{own}: it cannot be")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "file_search_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "call_id": "x", "name": "f"}]}, "input[0].arguments"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 1}}}}, "text.format.schema.type"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("fields", "param"), BAD)
async def test_bad_requests(
    ring: ScriptedRing, http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    async with http.post(PATH, json={"input": "Hello"} | fields) as response:
        assert response.status == 400, await response.text()
        error = (await response.json())["error"]
    assert error["param"] == param, error["message"]
    assert ring.sent == []
