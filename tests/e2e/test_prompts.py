"""What clients ask about prompts: their log-probabilities, their echo, their embeddings; against `transformers`."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmark.server import Server
from model_proc.files.model_files import LocalModel
from tests.e2e.conftest import client, wait_until_idle

TEXT = "The capital of France is Paris, and the sea is far away."


@pytest.fixture(scope="module")
def reference(embedded_model: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(embedded_model.folder, dtype=torch.float32)


def tokens_of(server: Server, text: str) -> list[int]:
    return list(httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"])


def expected_logprobs(reference: Any, token_ids: list[int]) -> list[float]:
    """Of each token but the first."""
    with torch.no_grad():
        rows = reference(torch.tensor([token_ids])).logits[0, :-1].log_softmax(dim=-1)
    return [float(row[token]) for row, token in zip(rows, token_ids[1:], strict=True)]


def test_log_likelihoods_as_lm_eval_asks_for_them(real_server: Server, reference: Any) -> None:
    prompts = [tokens_of(real_server, TEXT), tokens_of(real_server, "1 2 3")]
    answer: Any = client(real_server).completions.create(
        model="smol", prompt=prompts, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(prompt) + 1
        assert logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs[0] is None
        ids = prompt + tokens_of(real_server, logprobs.tokens[-1])
        assert logprobs.token_logprobs[1:] == pytest.approx(expected_logprobs(reference, ids), abs=1e-3)
        assert "".join(logprobs.tokens) == choice.text
        assert [choice.text[start:][:1] for start in logprobs.text_offset] == [token[0] for token in logprobs.tokens]
        for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
            assert value in top.values()
            assert 1 <= len(top) <= 2
        assert max(logprobs.top_logprobs[-1].values()) == logprobs.token_logprobs[-1]
    assert answer.choices[0].text.startswith(TEXT)
    wait_until_idle(real_server)


def test_an_echo_alone_generates_nothing(real_server: Server, mock_server: Server) -> None:
    for server, model in ((real_server, "smol"), (mock_server, "mock")):
        api = client(server)
        answer: Any = api.completions.create(model=model, prompt=TEXT, max_tokens=0, echo=True)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "length")
        assert answer.usage.completion_tokens == 0
        options: Any = {"model": model, "prompt": [TEXT, "one"], "max_tokens": 3, "temperature": 0}
        whole = [choice.text for choice in api.completions.create(echo=True, **options).choices]
        assert whole == [
            text + choice.text
            for text, choice in zip(options["prompt"], api.completions.create(**options).choices, strict=True)
        ]
        streamed = ["", ""]
        for chunk in api.completions.create(echo=True, stream=True, **options):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == whole
        wait_until_idle(server)


def test_prompt_logprobs_in_both_dialects(real_server: Server, reference: Any) -> None:
    api = client(real_server)
    wanted = {"prompt_logprobs": 2, "return_token_ids": True}
    messages: Any = [{"role": "user", "content": TEXT}]
    chat: Any = api.chat.completions.create(model="smol", messages=messages, max_tokens=2, extra_body=wanted)
    _check(chat.prompt_logprobs, chat.prompt_token_ids, reference)
    assert len(chat.choices[0].token_ids) == 2
    text: Any = api.completions.create(model="smol", prompt=[TEXT, "a b"], n=2, max_tokens=1, extra_body=wanted)
    assert len(text.choices) == 4
    for choice in text.choices:
        _check(choice.prompt_logprobs, choice.prompt_token_ids, reference)
    # What was read is in the cache, and yet everything is read again.
    again: Any = api.completions.create(model="smol", prompt=TEXT, max_tokens=1, extra_body={"prompt_logprobs": 2})
    assert again.choices[0].prompt_logprobs == text.choices[0].prompt_logprobs
    assert again.usage.prompt_tokens_details.cached_tokens == 0


def test_prompt_logprobs_of_sglangs_endpoint(real_server: Server, reference: Any) -> None:
    ids = tokens_of(real_server, TEXT)
    asked = {"return_logprob": True, "logprob_start_len": 3, "top_logprobs_num": 1, "return_text_in_logprobs": True}
    body = {"text": TEXT, "sampling_params": {"max_new_tokens": 2, "temperature": 0}} | asked
    meta = httpx.post(f"{real_server.url}/generate", json=body).json()["meta_info"]
    values, shown_ids, texts = zip(*meta["input_token_logprobs"], strict=True)
    assert (values[0], list(shown_ids)) == (None, ids[3:])
    assert list(values[1:]) == pytest.approx(expected_logprobs(reference, ids)[3:], abs=1e-3)
    assert TEXT.endswith("".join(texts))
    # The most likely candidate is what greedy sampling takes.
    assert [[entry] for entry in meta["output_token_logprobs"]] == meta["output_top_logprobs"]
    with httpx.stream("POST", f"{real_server.url}/generate", json=body | {"stream": True}) as response:
        events = [line for line in response.iter_lines() if line.startswith("data: {")]
    streamed = json.loads(events[-1].removeprefix("data: "))["meta_info"]
    for name in ("input_token_logprobs", "input_top_logprobs", "output_token_logprobs", "output_top_logprobs"):
        assert streamed[name] == meta[name]


def _check(shown: list[Any], token_ids: list[int], reference: Any) -> None:
    assert shown[0] is None
    values = [entry[str(token)]["logprob"] for entry, token in zip(shown[1:], token_ids[1:], strict=True)]
    assert values == pytest.approx(expected_logprobs(reference, token_ids), abs=1e-3)
    for entry in shown[1:]:
        assert {candidate["rank"] for candidate in entry.values()} >= {1, 2}


def test_embeddings(real_server: Server, reference: Any) -> None:
    api = client(real_server)
    texts = [TEXT, "Paris", "a cat and a dog"]
    ids = [tokens_of(real_server, text) for text in texts]
    with torch.no_grad():
        last = [reference.model(torch.tensor([each])).last_hidden_state[0, -1] for each in ids]
    expected = [(vector / vector.norm()).tolist() for vector in last]
    for given, wanted in ((texts, expected), (ids, expected), (texts[0], expected[:1]), (ids[1], expected[1:2])):
        for encoding in ("float", "base64", None):  # the client asks for base64 by itself, and decodes it
            options: Any = {} if encoding is None else {"encoding_format": encoding}
            answer = api.embeddings.create(model="smol", input=given, **options)
            assert [item.index for item in answer.data] == list(range(len(wanted)))
            if encoding == "base64":
                continue
            for item, vector in zip(answer.data, wanted, strict=True):
                assert item.embedding == pytest.approx(vector, abs=1e-4)
    answer = api.embeddings.create(model="smol", input=texts)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    wait_until_idle(real_server)


def test_what_cannot_be_asked_of_a_prompt(real_server: Server, mock_server: Server) -> None:
    api = client(real_server)
    with pytest.raises(openai.BadRequestError, match="8193"):
        api.embeddings.create(model="smol", input=[5] * 8193)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        api.embeddings.create(model="smol", input="x", dimensions=2)
    mock = client(mock_server)
    with pytest.raises(openai.BadRequestError, match="computes nothing"):
        mock.embeddings.create(model="mock", input="x")
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
        mock.completions.create(model="mock", prompt="x", extra_body={"prompt_logprobs": 1})
    with pytest.raises(openai.BadRequestError, match="echo"):
        mock.completions.create(model="mock", prompt="x", echo=True, logprobs=1)


def test_the_names_of_tokens(real_server: Server) -> None:
    body = {"prompt": "Hello world", "return_token_strs": True}
    answer = httpx.post(f"{real_server.url}/tokenize", json=body).json()
    assert answer["token_strs"] == ["Hello", "Ġworld"]
    assert answer["count"] == 2
