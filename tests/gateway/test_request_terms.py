"""What a request may ask of the scheduler: its priority, its time limit, and whose account it is on."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gateway import engine
from gateway.request import Envelope, completion_job
from gateway.tenant import tenant_of
from ipc.config import GatewayConfig
from ipc.messages import ERROR, TIMEOUT, Generate, Refusal
from tests.gateway.answers import events_in, next_event
from tests.gateway.scripted_ring import CONFIG, MS, ScriptedRing, head, tail

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOO_LATE = Refusal(504, "timeout_error", "it took longer than its 20 ms")


async def generate_of(ring: ScriptedRing, http: aiohttp.ClientSession, body: dict[str, Any], key: str = "") -> Generate:
    """What a body of /v1/completions becomes."""
    ring.script = lambda generate: ring.answer(generate, ["x"])
    headers = {"Authorization": key} if key else {}
    async with http.post(TEXT, json={"prompt": "x"} | body, headers=headers) as response:
        assert response.status == 200, await response.text()
    return await ring.next(Generate)


class TestDeadline:
    @pytest.mark.asyncio
    async def test_without_a_limit_there_is_none(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        assert (await generate_of(ring, http, {})).deadline_ns == 0
        assert (await generate_of(ring, http, {"timeout_ms": None})).deadline_ns == 0

    @pytest.mark.asyncio
    @pytest.mark.parametrize("timeout_ms", [1, 2500, 7 * 24 * 3600 * 1000])
    async def test_its_own_limit(self, ring: ScriptedRing, http: aiohttp.ClientSession, timeout_ms: int) -> None:
        generate = await generate_of(ring, http, {"timeout_ms": timeout_ms})
        assert generate.deadline_ns - generate.received_ns == timeout_ms * MS

    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    async def test_every_prompt_has_the_same(self, ring: ScriptedRing, http: aiohttp.ClientSession, path: str) -> None:
        ring.script = lambda generate: ring.answer(generate, ["x"])
        prompts = {"messages": HELLO} if path == CHAT else {"prompt": ["a", "b", "c"]}
        async with http.post(path, json=prompts | {"timeout_ms": 5000}) as response:
            assert response.status == 200
        deadlines = {message.deadline_ns - message.received_ns for message in ring.sent}
        assert deadlines == {5000 * MS}

    @pytest.mark.asyncio
    async def test_a_limit_beyond_64_bits_is_explained(self, http: aiohttp.ClientSession) -> None:
        async with http.post(TEXT, json={"prompt": "x", "timeout_ms": 2**62}) as response:
            assert response.status == 400
            assert "less than or equal to 604800000" in (await response.json())["error"]["message"]


class TestServerDeadline:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, request_timeout=1.5)

    @pytest.mark.asyncio
    async def test_it_holds_unless_the_request_has_its_own(
        self, ring: ScriptedRing, http: aiohttp.ClientSession
    ) -> None:
        for body, limit_ms in (({}, 1500), ({"timeout_ms": 9000}, 9000), ({"timeout_ms": 10}, 10)):
            generate = await generate_of(ring, http, body)
            assert generate.deadline_ns - generate.received_ns == limit_ms * MS


class TestTimeout:
    @pytest.mark.asyncio
    @pytest.mark.parametrize("stream", [False, True])
    async def test_the_schedulers_word_before_the_first_token(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, stream: bool
    ) -> None:
        ring.script = lambda generate: ring.bring(
            heads=[head(generate.rid)], tails=[tail(generate.rid, 0, TIMEOUT, refusal=TOO_LATE)]
        )
        async with http.post(TEXT, json={"prompt": "x", "stream": stream, "timeout_ms": 20_000}) as response:
            assert response.status == 504
            error = (await response.json())["error"]
        assert error == {"message": TOO_LATE.message, "type": "timeout_error", "param": None, "code": 504}
        assert ring.aborted() == []

    @pytest.mark.asyncio
    async def test_the_schedulers_word_in_a_stream(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1])])
        async with http.post(TEXT, json={"prompt": "x", "stream": True, "n": 2, "timeout_ms": 20_000}) as response:
            await next_event(response)
            rid = (await ring.next(Generate)).rid
            ring.bring(rows=[(rid, "b", [2])], tails=[tail(rid, 2, TIMEOUT, refusal=TOO_LATE)])
            text, error = events_in(await response.read())
        assert (text["choices"][0]["text"], text["choices"][0]["finish_reason"]) == ("b", None)
        assert (error["error"]["type"], error["error"]["code"]) == ("timeout_error", 504)
        assert "timings" not in error
        assert ring.aborted() == [rid + 1]

    @pytest.mark.asyncio
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_request_that_never_comes_back(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, stream: bool
    ) -> None:
        """It is stuck somewhere on its way to the scheduler: the gateway itself ends it, and aborts it."""
        monkeypatch.setattr(engine, "DEADLINE_GRACE_S", 0.0)
        async with http.post(TEXT, json={"prompt": ["x", "y"], "stream": stream, "timeout_ms": 1}) as response:
            assert response.status == 504
            assert (await response.json())["error"]["type"] == "timeout_error"
        rids = [message.rid for message in ring.sent if isinstance(message, Generate)]
        assert (len(rids), ring.aborted()) == (2, rids)
        assert ring.engine.in_flight() == {"requests": 0, "sequences": 0, "look_ups": 0}

    @pytest.mark.asyncio
    async def test_a_stream_that_stops_coming(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "DEADLINE_GRACE_S", 0.0)
        ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "a", [1])])
        async with http.post(TEXT, json={"prompt": "x", "stream": True, "timeout_ms": 50}) as response:
            text, error = events_in(await response.read())
        assert (text["choices"][0]["text"], error["error"]["code"]) == ("a", 504)

    @pytest.mark.asyncio
    async def test_an_answer_that_is_complete_stays_one(
        self, ring: ScriptedRing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The deadline is the ring's: that a client takes its time to read is no reason to cut it."""
        monkeypatch.setattr(engine, "DEADLINE_GRACE_S", 0.0)
        job = completion_job({"prompt": "x", "timeout_ms": 1}, Envelope("r", ""), ring.view, CONFIG)
        with ring.engine.submit(job) as stream:
            ring.answer(job.generates[0], ["a"])
            await asyncio.sleep(0.02)  # timers ring in order: the one of the deadline has
            assert stream.failure is None
            assert [piece.text for piece in await stream.some()] == ["a"]

    @pytest.mark.asyncio
    async def test_other_failures_keep_their_status(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        refusal = Refusal(500, "server_error", "the step failed")
        ring.script = lambda generate: ring.bring(
            heads=[head(generate.rid)], tails=[tail(generate.rid, 0, ERROR, refusal=refusal)]
        )
        async with http.post(TEXT, json={"prompt": "x", "timeout_ms": 20_000}) as response:
            assert response.status == 500


class TestPriority:
    @pytest.fixture(params=["priority", "my_module:MyPolicy"])
    def config(self, request: pytest.FixtureRequest) -> GatewayConfig:
        return replace(CONFIG, scheduling_policy=request.param)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("priority", [0, -3, 2**63 - 1, -(2**63)])
    async def test_it_reaches_a_policy_that_may_read_it(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, priority: int
    ) -> None:
        assert (await generate_of(ring, http, {"priority": priority})).priority == priority

    @pytest.mark.asyncio
    async def test_null_is_the_default(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        assert (await generate_of(ring, http, {"priority": None})).priority == 0


class TestNoPriority:
    @pytest.fixture(params=["fcfs", "sjf", "lpm", "fair"])
    def config(self, request: pytest.FixtureRequest) -> GatewayConfig:
        return replace(CONFIG, scheduling_policy=request.param)

    @pytest.mark.asyncio
    async def test_it_is_refused_with_the_remedy(
        self, ring: ScriptedRing, http: aiohttp.ClientSession, config: GatewayConfig
    ) -> None:
        async with http.post(TEXT, json={"prompt": "x", "priority": 1}) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error["param"] == "priority"
        assert f"the scheduling policy of this server is {config.scheduling_policy}," in error["message"]
        assert error["message"].endswith("start it with --scheduling-policy priority")
        assert ring.sent == []
        assert (await generate_of(ring, http, {"priority": 0})).priority == 0


class TestTenant:
    @pytest.mark.asyncio
    async def test_a_key_and_a_user_make_a_tenant(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        callers: list[tuple[str, dict[str, Any]]] = [
            ("Bearer key-1", {}),
            ("Bearer key-2", {}),
            ("Bearer key-1", {"user": "ann"}),
            ("Bearer key-1", {"user": "bob"}),
            ("Bearer key-2", {"user": "ann"}),
            ("", {"user": "ann"}),
            ("", {"user": "key-1"}),
            ("Bearer kéy", {"user": "ännchen \0"}),
        ]
        tenants = [(await generate_of(ring, http, body, key)).tenant for key, body in callers]
        assert len(set(tenants)) == len(callers)
        assert all(re.fullmatch("[0-9a-f]{16}", tenant) for tenant in tenants)
        assert tenants == [(await generate_of(ring, http, body, key)).tenant for key, body in callers]

    @pytest.mark.asyncio
    async def test_a_prompt_cache_key_stands_for_a_user(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        for body in ({"prompt_cache_key": "ann"}, {"prompt_cache_key": "team", "user": "ann"}):
            assert (await generate_of(ring, http, body, "Bearer k")).tenant == tenant_of("k", "ann")
        ring.script = lambda generate: ring.answer(generate, ["x"])
        async with http.post("/v1/responses", json={"input": "Hello", "prompt_cache_key": "ann"}) as response:
            assert response.status == 200
        assert (await ring.next(Generate)).tenant == tenant_of("", "ann")

    @pytest.mark.asyncio
    async def test_nobody_in_particular(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        for key, body in (("", {}), ("Basic YTpi", {}), ("Bearer ", {"user": ""}), ("Bearer", {"user": None})):
            assert (await generate_of(ring, http, body, key)).tenant == ""

    @pytest.mark.asyncio
    async def test_the_scheme_in_any_case(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        names = {(await generate_of(ring, http, {}, f"{scheme} k")).tenant for scheme in ("Bearer", "bearer", "BEARER")}
        assert len(names) == 1
        assert "" not in names

    @pytest.mark.asyncio
    async def test_every_prompt_of_a_chat_or_completion(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        ring.script = lambda generate: ring.answer(generate, ["x"])
        for path, prompts in ((TEXT, {"prompt": ["a", "b"]}), (CHAT, {"messages": HELLO})):
            async with http.post(path, json=prompts | {"user": "ann"}) as response:
                assert response.status == 200
        assert {message.tenant for message in ring.sent} == {tenant_of("", "ann")}


def test_bytes_that_are_not_utf8_are_a_key_as_well() -> None:
    """aiohttp hands them on as surrogates."""
    assert tenant_of(b"\xff".decode(errors="surrogateescape"), "") != tenant_of("", "")
