"""SGLang's /generate."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from ipc.messages import LENGTH, STOP, Generate, Reading, Refusal
from tests.gateway.answers import events_in, logprobs_of, next_event
from tests.gateway.scripted_ring import MODEL, ScriptedRing, head, tail

PATH = "/generate"


@pytest.mark.asyncio
async def test_unary(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["One", " two"], LENGTH)
    async with http.post(PATH, json={"text": "x", "rid": "r"}) as response:
        assert await response.json() == {
            "text": "One two",
            "meta_info": {
                "id": "r",
                "finish_reason": {"type": "length", "length": 2},
                "prompt_tokens": 5,
                "cached_tokens": 2,
                "completion_tokens": 2,
                "e2e_latency": 0.007,
            },
        }
    async with http.put(PATH, json={"input_ids": [1, 2]}) as response:
        assert (await response.json())["text"] == "One two"


@pytest.mark.asyncio
async def test_a_stream_repeats_the_text_so_far(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.bring(heads=[head(generate.rid)], rows=[(generate.rid, "One", [1])])
    async with http.post(PATH, json={"text": "x", "stream": True}) as response:
        first = await next_event(response)
        rid = (await ring.next(Generate)).rid
        ring.bring(rows=[(rid, " two", [2])], tails=[tail(rid, 2, STOP, stop_string="\n")])
        second = await next_event(response)
        assert await next_event(response) is None
    assert (first["text"], first["meta_info"]["completion_tokens"], first["meta_info"]["finish_reason"]) == (
        "One",
        1,
        None,
    )
    assert (second["text"], second["meta_info"]["finish_reason"]) == ("One two", {"type": "stop", "matched": "\n"})


@pytest.mark.asyncio
async def test_several(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["a"])
    cases: list[tuple[dict[str, Any], int]] = [
        ({"text": ["x", "y"]}, 2),
        ({"text": ["x"]}, 1),
        ({"input_ids": [[1], [2, 3]]}, 2),
        ({"text": "x", "sampling_params": {"n": 3}}, 3),
    ]
    for body, count in cases:
        async with http.post(PATH, json=body) as response:
            assert [output["text"] for output in await response.json()] == ["a"] * count
        async with http.post(PATH, json=body | {"stream": True}) as response:
            events = events_in(await response.read())
        assert {event["index"] for event in events} == set(range(count))


@pytest.mark.asyncio
async def test_what_its_own_benchmark_sends(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["a"])
    body = {
        "text": "x",
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 7, "ignore_eos": True},
        "stream": True,
        "lora_path": None,
        "return_logprob": False,
        "logprob_start_len": -1,
    }
    async with http.post(PATH, json=body) as response:
        assert response.status == 200
    sampling = (await ring.next(Generate)).sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.ignore_eos) == (0.0, 7, True)


@pytest.mark.asyncio
async def test_parameters_reach_the_ring(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["a"])
    sampling = {
        "min_new_tokens": 2,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.25,
        "frequency_penalty": 1,
        "presence_penalty": -1,
        "repetition_penalty": 1.5,
        "stop": "END",
        "stop_token_ids": [4],
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "sampling_seed": 9,
        "logit_bias": {"3": 1},
        "spaces_between_special_tokens": True,
        "regex": None,
    }
    async with http.post(PATH, json={"text": "x", "sampling_params": sampling}) as response:
        assert response.status == 200, await response.text()
    generate = await ring.next(Generate)
    sent, output = generate.sampling, generate.output
    assert (sent.max_tokens, sent.min_tokens, sent.top_p, sent.top_k, sent.min_p) == (128, 2, 0.5, 0, 0.25)
    assert (sent.frequency_penalty, sent.presence_penalty, sent.repetition_penalty) == (1.0, -1.0, 1.5)
    assert (sent.stop_token_ids, sent.seed, sent.bias_ids) == (array("i", [4]), 9, array("i", [3]))
    assert (output.stop, output.include_stop, output.skip_special_tokens) == (["END"], True, False)


@pytest.mark.asyncio
async def test_structures(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    for name, text, kind in (
        ("json_schema", '{"type": "integer"}', "json"),
        ("regex", "a+", "regex"),
        ("ebnf", 'root ::= "a"', "gbnf"),
    ):
        async with http.post(PATH, json={"text": "x", "sampling_params": {name: text}}) as response:
            assert response.status == 200, await response.text()
        [part] = (await ring.next(Generate)).grammar
        assert (part.kind, part.text) == (kind, text)
        refusal = Refusal(400, "invalid_request_error", f"{part.param}: no", part.param)
        ring.script = lambda generate, refusal=refusal: ring.refuse(generate, refusal)
        async with http.post(PATH, json={"text": "x", "sampling_params": {name: text}}) as response:
            error = (await response.json())["error"]
        assert (error["param"], error["message"]) == (f"sampling_params.{name}", f"sampling_params.{name}: no")
        ring.script = lambda generate: ring.answer(generate, ["x"])
        await ring.next(Generate)


PROMPT = [[(7, 0.0, b"A")], [(8, -2.0, b" b"), (9, -0.5, b" c")], [(9, -0.25, b" c"), (9, -0.25, b" c")]]
OUTPUT = [[(1, -1.5, b"\xf0"), (2, -0.75, b"x")], [(2, -0.125, b"x"), (2, -0.125, b"x")]]


@pytest.mark.asyncio
async def test_log_probabilities(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def answer(generate: Generate) -> None:
        readings = [
            Reading(generate.rid, 0, logprobs_of(PROMPT[:2]), []),
            Reading(generate.rid, 2, logprobs_of(PROMPT[2:]), []),
        ]
        ring.bring(heads=[head(generate.rid)], readings=readings)
        for position, row in enumerate(OUTPUT):
            tails = [tail(generate.rid, 2)] if position else []
            ring.bring(rows=[(generate.rid, "x", [position])], tails=tails, logprobs=logprobs_of([row]))

    ring.script = answer
    asked = {"text": "x", "return_logprob": True, "logprob_start_len": 1, "top_logprobs_num": 1}
    async with http.post(PATH, json=asked | {"return_text_in_logprobs": True}) as response:
        whole = (await response.json())["meta_info"]
    assert whole["input_token_logprobs"] == [[None, 8, " b"], [-0.25, 9, " c"]]
    assert whole["input_top_logprobs"] == [None, [[-0.25, 9, " c"]]]
    assert whole["output_token_logprobs"] == [[-1.5, 1, "\ufffd"], [-0.125, 2, "x"]]
    assert whole["output_top_logprobs"] == [[[-0.75, 2, "x"]], [[-0.125, 2, "x"]]]
    sampling = (await ring.next(Generate)).sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (1, 1)
    async with http.post(PATH, json=asked | {"stream": True}) as response:
        last = events_in(await response.read())[-1]["meta_info"]
    assert last["input_token_logprobs"] == [[None, 8, None], [-0.25, 9, None]]
    assert last["output_token_logprobs"] == [[-1.5, 1, None], [-0.125, 2, None]]
    await ring.next(Generate)
    async with http.post(PATH, json={"text": "x", "return_logprob": True}) as response:
        bare = (await response.json())["meta_info"]
    assert (bare["input_token_logprobs"], "output_top_logprobs" in bare) == ([], False)
    assert [value for value, *_ in bare["output_token_logprobs"]] == [-1.5, -0.125]
    sampling = (await ring.next(Generate)).sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (0, -1)


@pytest.mark.asyncio
async def test_no_new_tokens_reads_the_prompt_alone(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    def answer(generate: Generate) -> None:
        ring.bring(heads=[head(generate.rid)], readings=[Reading(generate.rid, 0, logprobs_of(PROMPT), [])])
        ring.bring(tails=[tail(generate.rid, 0, LENGTH)])

    ring.script = answer
    body = {"text": "x", "sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    for is_stream in (False, True):
        async with http.post(PATH, json=body | {"stream": is_stream}) as response:
            assert response.status == 200, await response.text()
            [answer_] = events_in(await response.read()) if is_stream else [await response.json()]
        meta = answer_["meta_info"]
        assert (answer_["text"], meta["output_token_logprobs"]) == ("", [])
        assert [value for value, *_ in meta["input_token_logprobs"]] == [None, -2.0, -0.25]
        sampling = (await ring.next(Generate)).sampling
        assert (sampling.prompt_only, sampling.prompt_logprobs) == (True, 0)


@pytest.mark.asyncio
async def test_a_model_that_computes_nothing_has_no_prompt_logprobs(
    ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    ring.view.update(replace(MODEL, reads_prompts=False))
    async with http.post(PATH, json={"text": "x", "return_logprob": True, "logprob_start_len": 0}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "logprob_start_len")


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "text"),
    ({"text": "x", "input_ids": [1]}, "text"),
    ({"text": ""}, "text"),
    ({"text": ["x", ""]}, "text[1]"),
    ({"text": []}, "text"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [500]}, "input_ids"),
    ({"input_ids": ["a"]}, "input_ids[0]"),
    ({"text": "x", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
    ({"text": "x", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 3}}, "sampling_params.min_new_tokens"),
    ({"text": "x", "sampling_params": {"temperature": "1"}}, "sampling_params.temperature"),
    ({"text": "x", "sampling_params": {"n": 2, "temperature": 0}}, "sampling_params.n"),
    ({"text": "x", "sampling_params": {"stop_token_ids": [500]}}, "sampling_params.stop_token_ids[0]"),
    ({"text": "x", "sampling_params": {"regex": ""}}, "sampling_params.regex"),
    ({"text": "x", "sampling_params": {"regex": "a", "ebnf": "b"}}, "sampling_params"),
    ({"text": "x", "sampling_params": {"json_schema": "{"}}, "sampling_params.json_schema"),
    ({"text": "x", "sampling_params": {"json_schema": {}}}, "sampling_params.json_schema"),
    ({"text": "x", "sampling_params": {"structural_tag": "a"}}, "sampling_params.structural_tag"),
    ({"text": "x", "sampling_params": {"nonsense": 1}}, "sampling_params.nonsense"),
    ({"text": "x", "sampling_params": []}, "sampling_params"),
    ({"text": "x", "return_logprob": "yes"}, "return_logprob"),
    ({"text": "x", "logprob_start_len": 0}, "logprob_start_len"),
    ({"text": "x", "top_logprobs_num": 1}, "top_logprobs_num"),
    ({"text": "x", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
    ({"text": "x", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len"),
    (
        {"text": "x", "return_logprob": True, "logprob_start_len": 0, "stream": True, "sampling_params": {"n": 2}},
        "logprob_start_len",
    ),
    ({"text": "x", "token_ids_logprob": [1]}, "token_ids_logprob"),
    ({"text": "x", "lora_path": "a"}, "lora_path"),
    ({"text": "x", "priority": 3}, "priority"),
    ({"text": "x", "nonsense": 3}, "nonsense"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("body", "param"), BAD)
async def test_bad_requests(ring: ScriptedRing, http: aiohttp.ClientSession, body: dict[str, Any], param: str) -> None:
    async with http.post(PATH, json=body) as response:
        assert response.status == 400, await response.text()
        error = (await response.json())["error"]
    assert error["param"] == param, error["message"]
    assert ring.sent == []
