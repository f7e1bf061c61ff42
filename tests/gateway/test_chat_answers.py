"""/v1/chat/completions, seen through OpenAI's client and event by event."""

from __future__ import annotations

from array import array
from typing import Any

import aiohttp
import openai
import pytest

from ipc.messages import STOP, Generate
from tests.gateway.answers import events_in, logprobs_of, next_event
from tests.gateway.scripted_ring import ScriptedRing, head, tail

HELLO: Any = [{"role": "user", "content": "Hello"}]
WORDS = ["One", " two", " three"]


@pytest.mark.asyncio
async def test_unary(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS, STOP)
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "One two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.asyncio
async def test_stream_with_the_client(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    stream = await client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    first, *middle, last, usage = [chunk async for chunk in stream]
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert first.choices[0].finish_reason is None
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == "One two three"
    assert last.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 8


@pytest.mark.asyncio
async def test_every_event_of_a_stream(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]
) -> None:
    body = chat_body | {"stream": True, "stream_options": {"include_usage": True}, "request_id": "50% sure"}
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "Ä\n", [7])])
    async with http.post("/v1/chat/completions", json=body) as response:
        role, text = await next_event(response), await next_event(response)
        rid = (await ring.next(Generate)).rid
        # A hidden end of sequence: a token without text, and the end.
        ring.bring(rows=[(rid, "", [2])], tails=[tail(rid, 2, STOP, stop_token=2)])
        end, usage = await next_event(response), await next_event(response)
        assert await next_event(response) is None
    created = role["created"]
    common = {"id": "chatcmpl-50% sure", "object": "chat.completion.chunk", "created": created, "model": "tiny"}
    open_choice = {"index": 0, "logprobs": None, "finish_reason": None}
    role_choice = open_choice | {"delta": {"role": "assistant", "content": ""}}
    end_choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert role == common | {"choices": [role_choice], "usage": None}
    assert text == common | {"choices": [open_choice | {"delta": {"content": "Ä\n"}}], "usage": None}
    assert end == common | {"choices": [end_choice], "usage": None}
    assert {type(usage.pop(name)) for name in ("timings", "metrics")} == {dict}
    assert usage == common | {
        "choices": [],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


@pytest.mark.asyncio
async def test_usage_is_absent_unless_asked_for(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]
) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    async with http.post("/v1/chat/completions", json=chat_body | {"stream": True}) as response:
        events = events_in(await response.read())
    assert all("usage" not in event for event in events)


@pytest.mark.asyncio
async def test_continuous_usage(ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]) -> None:
    body = chat_body | {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [7])])
    async with http.post("/v1/chat/completions", json=body) as response:
        await next_event(response)
        text = await next_event(response)
        rid = (await ring.next(Generate)).rid
        ring.bring(rows=[(rid, "b", [8, 9])], tails=[tail(rid, 3)])
        second, end = await next_event(response), await next_event(response)
        assert await next_event(response) is None
    counts = [event["usage"]["completion_tokens"] for event in (text, second, end)]
    assert counts == [1, 3, 3]


@pytest.mark.asyncio
async def test_choices_each_open_and_end_once(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]
) -> None:
    def script(generate: Generate) -> None:
        first, second, third = range(generate.rid, generate.rid + 3)
        ring.bring(heads=[head(second)], rows=[(second, "B", [1])], tails=[tail(second, 1)])
        ring.bring(heads=[head(first)], rows=[(first, "A", [1])])
        ring.bring(heads=[head(third)], rows=[(first, "a", [1]), (third, "C", [1])], tails=[tail(third, 1)])
        ring.bring(tails=[tail(first, 2)])

    ring.script = script
    async with http.post("/v1/chat/completions", json=chat_body | {"stream": True, "n": 3}) as response:
        choices = [event["choices"][0] for event in events_in(await response.read())]
    for index, text in enumerate(("Aa", "B", "C")):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "stop")


@pytest.mark.asyncio
async def test_logprobs(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    chosen, likelier, unlikely = (7, -1.0, b"\xc3"), (8, -0.5, b"x"), (9, -3.0, b"y")

    def script(generate: Generate) -> None:
        rid = generate.rid
        rows = logprobs_of([[chosen, likelier, chosen], [likelier, likelier, unlikely]])
        ring.bring(heads=[head(rid)], rows=[(rid, "é", [7, 8])], tails=[tail(rid, 2)], logprobs=rows)

    ring.script = script
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=2)
    assert (await ring.next(Generate)).sampling.logprobs == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("\N{REPLACEMENT CHARACTER}", -1.0, [0xC3])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [
        ("x", -0.5),
        ("\N{REPLACEMENT CHARACTER}", -1.0),
    ]
    assert [(top.token, top.logprob) for top in second.top_logprobs] == [("x", -0.5), ("y", -3.0)]


@pytest.mark.asyncio
async def test_logprobs_in_a_stream(ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]) -> None:
    def script(generate: Generate) -> None:
        rid = generate.rid
        rows = logprobs_of([[(7, -1.0, b"a")]])
        ring.bring(heads=[head(rid)], rows=[(rid, "a", [7])], logprobs=rows)

    ring.script = script
    async with http.post("/v1/chat/completions", json=chat_body | {"stream": True, "logprobs": True}) as response:
        role, text = await next_event(response), await next_event(response)
        rid = (await ring.next(Generate)).rid
        ring.bring(rows=[(rid, "", [2])], tails=[tail(rid, 2)], logprobs=logprobs_of([[(2, -0.1, b"</s>")]]))
        end = await next_event(response)
    assert role["choices"][0]["logprobs"] is None
    assert [entry["token"] for entry in text["choices"][0]["logprobs"]["content"]] == ["a"]
    assert text["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    # The end of sequence has no text, but the client asked for every token's log-probability.
    assert end["choices"][0]["delta"] == {}
    assert [entry["token"] for entry in end["choices"][0]["logprobs"]["content"]] == ["</s>"]


@pytest.mark.asyncio
async def test_token_ids(ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    async with http.post("/v1/chat/completions", json=chat_body | {"return_token_ids": True}) as response:
        assert (await response.json())["choices"][0]["token_ids"] == [100, 101, 102]
    async with http.post(
        "/v1/chat/completions", json=chat_body | {"return_token_ids": True, "stream": True}
    ) as response:
        choices = [event["choices"][0] for event in events_in(await response.read())]
    assert [token_id for choice in choices for token_id in choice.get("token_ids", [])] == [100, 101, 102]


@pytest.mark.asyncio
async def test_what_stopped_it(ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]) -> None:
    """The stop string, or a token that the client named; the model's own end of sequence is no news."""
    ends: list[tuple[dict[str, Any], str | int | None]] = [
        ({"stop_string": "\n"}, "\n"),
        ({"stop_token": 50}, 50),
        ({"stop_token": 2}, None),
    ]
    for fields, expected in ends:

        def script(generate: Generate, fields: dict[str, Any] = fields) -> None:
            ring.bring(heads=[head(generate.rid)], tails=[tail(generate.rid, 0, STOP, **fields)])

        ring.script = script
        async with http.post("/v1/chat/completions", json=chat_body | {"stop_token_ids": [50]}) as response:
            assert (await response.json())["choices"][0]["stop_reason"] == expected


@pytest.mark.asyncio
async def test_messages_travel_as_they_are(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    messages: Any = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": "Hi <|im_end|>\0", "tool_calls": None, "refusal": None, "annotations": []},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
        {"role": "user", "content": "", "name": "Ann"},
    ]
    await client.chat.completions.create(
        model="tiny", messages=messages, extra_body={"chat_template_kwargs": {"deep": {"x": [1, None]}}}
    )
    generate = await ring.next(Generate)
    assert (generate.text, generate.ids) == (None, None)
    assert generate.chat == {
        "messages": [
            messages[0],
            {"role": "assistant", "content": "Hi <|im_end|>\0"},
            messages[2],
            messages[3],
        ],
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template_kwargs": {"deep": {"x": [1, None]}},
    }


@pytest.mark.asyncio
async def test_parameters_reach_the_ring(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]
) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    body = chat_body | {
        "max_tokens": 9,
        "max_completion_tokens": 8,
        "min_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "frequency_penalty": 1,
        "presence_penalty": -1.5,
        "repetition_penalty": 1.25,
        "stop": "END",
        "stop_token_ids": [3, 499],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "n": 2,
        "seed": -5,
        "logit_bias": {"3": 1e9, "499": -2},
        "cache_salt": "tenant",
        "continue_final_message": True,
        "user": "me",
        "metadata": {"a": "1"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
    generate = await ring.next(Generate)
    assert (generate.n, generate.cache_salt, generate.priority) == (2, "tenant", 0)
    assert generate.chat is not None
    assert (generate.chat["add_generation_prompt"], generate.chat["continue_final_message"]) == (False, True)
    sampling, output = generate.sampling, generate.output
    assert (sampling.max_tokens, sampling.min_tokens, sampling.seed) == (8, 3, -5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 7, 0.125)
    assert sampling.frequency_penalty == 1.0
    assert sampling.presence_penalty == -1.5
    assert sampling.repetition_penalty == 1.25
    assert (sampling.stop_token_ids, sampling.ignore_eos) == (array("i", [3, 499]), True)
    assert (sampling.bias_ids, sampling.bias_values) == (array("i", [3, 499]), [100.0, -2.0])
    assert sampling.logprobs == -1
    assert (output.stop, output.include_stop, output.skip_special_tokens) == (["END"], True, False)


@pytest.mark.asyncio
async def test_defaults(ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, Any]) -> None:
    """Null means absent; what the client leaves open is the model's to say, then OpenAI's."""
    ring.script = lambda generate: ring.answer(generate, WORDS)
    body = chat_body | dict.fromkeys(("temperature", "top_k", "stop", "seed", "stream_options", "tools", "n"))
    seeds = set()
    for _ in range(2):
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
        sampling = (await ring.next(Generate)).sampling
        assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (1.0, 40, 0)
        seeds.add(sampling.seed)
    assert len(seeds) == 2, "without a seed every request draws its own"
    async with http.post("/v1/chat/completions", json=chat_body | {"top_k": -1}) as response:
        assert response.status == 200
    assert (await ring.next(Generate)).sampling.top_k == 0
