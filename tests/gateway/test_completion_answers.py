"""/v1/completions, seen through OpenAI's client and event by event."""

from __future__ import annotations

from array import array
from typing import Any

import aiohttp
import openai
import pytest

from ipc.messages import STOP, Generate
from tests.gateway.answers import events_in, logprobs_of, next_event
from tests.gateway.scripted_ring import ScriptedRing, head, tail

WORDS = ["One", " two", " three"]


@pytest.mark.asyncio
async def test_unary(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    answer = await client.completions.create(model="tiny", prompt="Count:")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("One two three", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    generate = await ring.next(Generate)
    assert (generate.text, generate.ids, generate.chat) == ("Count:", None, None)
    assert generate.sampling.max_tokens == 16


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [array("i", [1, 2])]),
        ([[1, 2], [3]], [array("i", [1, 2]), array("i", [3])]),
    ],
)
async def test_prompt_shapes(ring: ScriptedRing, http: aiohttp.ClientSession, prompt: Any, expected: list[Any]) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    async with http.post("/v1/completions", json={"prompt": prompt}) as response:
        assert response.status == 200
    sent = [message for message in ring.sent if isinstance(message, Generate)]
    assert [message.ids if message.text is None else message.text for message in sent] == expected


@pytest.mark.asyncio
async def test_prompts_and_choices(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    """Choices are counted prompt by prompt; a prompt counts once in the usage, whatever n is."""

    def script(generate: Generate) -> None:
        for choice in reversed(range(2)):
            rid = generate.rid + choice
            # Siblings find the first one's prompt in the cache; the client sees what the first one found.
            opening = head(rid, prompt_tokens=10, cached_tokens=10 * choice)
            ring.bring(heads=[opening], rows=[(rid, f"{generate.text}{choice}", [1])], tails=[tail(rid, 1)])

    ring.script = script
    async with http.post("/v1/completions", json={"prompt": ["a", "b", "c"], "n": 2}) as response:
        answer = await response.json()
    assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["prompt_tokens"] == 30
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.asyncio
async def test_every_event_of_a_stream(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    body = {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}, "request_id": "r1"}
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "Ä", [7])])
    async with http.post("/v1/completions", json=body) as response:
        text = await next_event(response)
        rid = (await ring.next(Generate)).rid
        ring.bring(rows=[(rid, "b", [8])], tails=[tail(rid, 2, STOP, stop_string="c")])
        end, usage = await next_event(response), await next_event(response)
        assert await next_event(response) is None
    common = {"id": "cmpl-r1", "object": "text_completion", "created": text["created"], "model": "tiny"}
    choice = {"index": 0, "text": "Ä", "logprobs": None, "finish_reason": None}
    assert text == common | {"choices": [choice], "usage": None}
    # The end goes with the last text: clients count events with a choice as tokens.
    choice |= {"text": "b", "finish_reason": "stop", "stop_reason": "c"}
    assert end == common | {"choices": [choice], "usage": None}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)


@pytest.mark.asyncio
async def test_stream_with_the_client(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    stream = await client.completions.create(model="tiny", prompt=["a", "b"], n=2, stream=True)
    chunks = [chunk async for chunk in stream]
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert set(texts.values()) == {"One two three"}
    ends = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2, 3]


@pytest.mark.asyncio
async def test_logprobs(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    def script(generate: Generate) -> None:
        rid = generate.rid
        first = logprobs_of([[(1, -1.0, b"ab"), (5, -0.25, b"zz"), (6, float("-inf"), b"\xff")]])
        second = logprobs_of([[(2, -2.0, b"\xc3")], [(3, -3.0, b"\xa9")], [(4, 0.0, b"</s>")]])
        ring.bring(heads=[head(rid)], rows=[(rid, "ab", [1])], logprobs=first)
        ring.bring(rows=[(rid, "é", [2, 3, 4])], tails=[tail(rid, 4)], logprobs=second)

    ring.script = script
    unary = await client.completions.create(model="tiny", prompt="x", logprobs=3)
    expected = {
        "tokens": ["ab", "bytes:\\xc3", "bytes:\\xa9", "</s>"],
        "token_logprobs": [-1.0, -2.0, -3.0, 0.0],
        "top_logprobs": [
            {"ab": -1.0, "zz": -0.25, "bytes:\\xff": -9999.0},
            {"bytes:\\xc3": -2.0},
            {"bytes:\\xa9": -3.0},
            {"</s>": 0.0},
        ],
        "text_offset": [0, 2, 2, 3],
    }
    assert unary.choices[0].logprobs is not None
    assert unary.choices[0].logprobs.model_dump() == expected
    stream = await client.completions.create(model="tiny", prompt="x", logprobs=3, stream=True)
    collected: dict[str, list[Any]] = {name: [] for name in expected}
    async for chunk in stream:
        assert chunk.choices[0].logprobs is not None
        for name, values in chunk.choices[0].logprobs.model_dump().items():
            collected[name] += values
    assert collected == expected


@pytest.mark.asyncio
async def test_logprobs_of_the_token_alone(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def script(generate: Generate) -> None:
        rows = logprobs_of([[(1, -1.0, b"ab")]])
        ring.bring(
            heads=[head(generate.rid)], rows=[(generate.rid, "ab", [1])], tails=[tail(generate.rid, 1)], logprobs=rows
        )

    ring.script = script
    async with http.post("/v1/completions", json={"prompt": "x", "logprobs": 0}) as response:
        logprobs = (await response.json())["choices"][0]["logprobs"]
    assert (await ring.next(Generate)).sampling.logprobs == 0
    assert logprobs["top_logprobs"] == [{"ab": -1.0}]


@pytest.mark.asyncio
async def test_token_ids(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, WORDS)
    body = {"prompt": "x", "return_token_ids": True, "stream": True}
    async with http.post("/v1/completions", json=body) as response:
        choices = [event["choices"][0] for event in events_in(await response.read())]
    assert [token_id for choice in choices for token_id in choice["token_ids"]] == [100, 101, 102]
