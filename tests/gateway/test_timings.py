"""Where the time of a request went: what is computed, and in which part of an answer it is shown."""

from __future__ import annotations

from typing import Any

import aiohttp
import openai
import pytest

from gateway.timings import span_ms, timings, vllm_metrics
from ipc.messages import LENGTH, STOP, Generate, Head, Output, Tail
from tests.gateway.answers import events_in, logprobs_of
from tests.gateway.scripted_ring import MS, ScriptedRing, head, tail

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
WORDS = ["One", " two", " three"]

# Of one sequence of the scripted ring, with three tokens.
TIMINGS = {
    "tokenize_ms": 1.0,
    "queue_ms": 1.0,
    "batch_wait_ms": 0.25,
    "prefill_ms": 2.0,
    "ttft_ms": 5.0,
    "decode_ms": 2.0,
    "total_ms": 7.0,
    "execution_ms": 3.0,
    "tokens_per_second": 1000.0,
    "prompt_tokens": 5,
    "cached_tokens": 2,
    "completion_tokens": 3,
    "batch_id": 7,
    "batch_size": 2.5,
}
METRICS = {
    "queue_time_ms": 1.0,
    "time_to_first_token_ms": 2.0,
    "generation_time_ms": 2.0,
    "mean_itl_ms": 1.0,
    "tokens_per_second": 750.0,
}


class TestNumbers:
    def test_one_sequence(self) -> None:
        ends = [(head(1), tail(1, 3))]
        assert timings(ends, 5, 2, 3) == TIMINGS
        assert vllm_metrics(ends) == METRICS

    def test_one_token_has_no_rate(self) -> None:
        """Its first token is its last one."""
        ends = [(head(1), tail(1, 1, finished_ns=6 * MS))]
        shown = timings(ends, 5, 2, 1)
        assert (shown["decode_ms"], shown["tokens_per_second"], shown["total_ms"]) == (0.0, None, 5.0)
        assert vllm_metrics(ends) == METRICS | {
            "generation_time_ms": 0.0,
            "mean_itl_ms": None,
            "tokens_per_second": 500.0,
        }

    def test_several_sequences_begin_with_the_first_token_and_end_with_the_last(self) -> None:
        early = (
            Head(1, Output(), 5, 0, 1 * MS, 2 * MS, 3 * MS, 4 * MS),
            Tail(1, STOP, 4, 10 * MS, 30 * MS, 0, 5, 5 * MS, 11 * MS, 1.0),
        )
        late = (
            Head(2, Output(), 5, 0, 1 * MS, 3 * MS, 9 * MS, 20 * MS),
            Tail(2, STOP, 7, 25 * MS, 60 * MS, 0, 9, 21 * MS, 40 * MS, 3.456),
        )
        for ends in ([early, late], [late, early]):
            assert timings(ends, 10, 0, 11) == {
                "tokenize_ms": 1.0,
                "queue_ms": 1.0,
                "batch_wait_ms": 1.0,
                "prefill_ms": 6.0,
                "ttft_ms": 9.0,
                "decode_ms": 50.0,
                "total_ms": 59.0,
                "execution_ms": 40.0,
                "tokens_per_second": 200.0,
                "prompt_tokens": 10,
                "cached_tokens": 0,
                "completion_tokens": 11,
                "batch_id": 5,
                "batch_size": 3.46,
            }
            assert vllm_metrics(ends) is None, "they could not be said of one sequence, and vLLM leaves them out"

    def test_what_has_not_happened_is_null(self) -> None:
        never = Tail(1, STOP, 0, 0, 9 * MS)
        shown = timings([(head(1), never)], 5, 2, 0)
        names = ("batch_wait_ms", "prefill_ms", "ttft_ms", "decode_ms", "tokens_per_second", "batch_id")
        assert [shown[name] for name in names] == [None] * len(names)
        assert vllm_metrics([(head(1), never)]) == dict.fromkeys(METRICS, None) | {"queue_time_ms": 1.0}

    def test_spans_have_microseconds(self) -> None:
        assert span_ms(1, 1_234_567) == 1.235
        assert (span_ms(0, 5), span_ms(5, 0)) == (None, None)


class TestPlace:
    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    async def test_in_a_whole_answer(self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str) -> None:
        ring.script = lambda generate: ring.answer(generate, WORDS)
        async with http.post(path, json={"messages": HELLO} if path == CHAT else {"prompt": "x"}) as response:
            answer = await response.json()
        assert (answer["timings"], answer["metrics"]) == (TIMINGS, METRICS)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    @pytest.mark.parametrize("details", [False, True], ids=["plain", "details"])
    async def test_in_the_last_event_of_a_stream(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str, details: bool
    ) -> None:
        ring.script = lambda generate: answer_with_logprobs(ring, generate)
        prompt: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
        fields = {"logprobs": True if path == CHAT else 0, "return_token_ids": True} if details else {}
        async with http.post(path, json=prompt | fields | {"stream": True}) as response:
            *events, last = events_in(await response.read())
        assert last["choices"][0]["finish_reason"] == "length"
        assert (last["timings"], last["metrics"]) == (TIMINGS, METRICS)
        assert not any("timings" in event or "metrics" in event for event in events)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("continuous", [False, True])
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    async def test_in_the_usage_event_when_there_is_one(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str, continuous: bool
    ) -> None:
        ring.script = lambda generate: ring.answer(generate, WORDS)
        options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": continuous}}
        prompt = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
        async with http.post(path, json=prompt | options) as response:
            *events, last = events_in(await response.read())
        assert (last["choices"], last["timings"], last["metrics"]) == ([], TIMINGS, METRICS)
        assert not any("timings" in event or "metrics" in event for event in events)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    async def test_once_with_the_last_of_several_choices(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str
    ) -> None:
        def script(generate: Generate) -> None:
            first, second = generate.rid, generate.rid + 1
            ring.bring(heads=[head(second)], rows=[(second, "b", [1])], tails=[tail(second, 1)])
            ring.bring(heads=[head(first)], rows=[(first, "a", [1])])
            ring.bring(rows=[(first, "a", [1])], tails=[tail(first, 2, finished_ns=26 * MS)])

        ring.script = script
        body = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
        async with http.post(path, json=body | {"n": 2, "stream": True}) as response:
            *events, last = events_in(await response.read())
        assert (last["choices"][0]["index"], last["metrics"]) == (0, None)
        assert (last["timings"]["total_ms"], last["timings"]["completion_tokens"]) == (25.0, 3)
        assert (last["timings"]["decode_ms"], last["timings"]["tokens_per_second"]) == (20.0, 100.0)
        assert not any("timings" in event for event in events)
        async with http.post(path, json=body | {"n": 2}) as response:
            answer = await response.json()
        assert (answer["timings"], answer["metrics"]) == (last["timings"], None)

    @pytest.mark.asyncio
    async def test_openais_client_lets_them_through(self, ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
        ring.script = lambda generate: ring.answer(generate, WORDS)
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
        assert answer.model_extra is not None
        assert answer.model_extra["timings"] == TIMINGS
        stream = await client.completions.create(model="tiny", prompt="x", stream=True)
        last = [chunk async for chunk in stream][-1]
        assert last.model_extra is not None
        assert last.model_extra["metrics"] == METRICS


def answer_with_logprobs(ring: ScriptedRing, generate: Generate) -> None:
    """Three tokens, each with its log-probability."""
    rid = generate.rid
    for position, word in enumerate(WORDS):
        rows = logprobs_of([[(position, -1.0, word.encode())]])
        heads, tails = [head(rid)] if position == 0 else [], [tail(rid, 3, LENGTH)] if position == 2 else []
        ring.bring(heads=heads, rows=[(rid, word, [position])], tails=tails, logprobs=rows)
