"""Whatever fits /openapi.json is answered as it says: never with a 5xx, and in the described shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from benchmark.server import Server
from gateway.openapi import ANSWERS, STREAMS

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]
OWN_ENDS = (501, 504)  # what this server does not do, and what takes longer than it may
PAGES = ("/", "/docs")
# They never end, take the cache from all, or record the whole ring.
NOT_FUZZED = ["/v1/events", "/flush_cache", "/start_profile", "/stop_profile"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that gives up early, for a random body may ask for 30,000 tokens a thousand times."""
    with Server(model="mock", request_timeout=2.0, max_model_len=512) as server:
        yield server


def test_answers_are_as_described(server: Server) -> None:
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    paths, answered = set(), set()
    for result in description.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if operation.path in NOT_FUZZED or operation.path in PAGES or operation.path.startswith("/web/"):
            continue
        paths.add(operation.path)
        if 200 in _fuzz(operation):
            answered.add(operation.path)
    assert {"/v1/embeddings", "/v1/models/{name}"} <= paths
    assert {path for path, _ in GOOD} | set(LOOKED_AT) <= answered


def _fuzz(operation: Any) -> set[int]:
    """Random requests of an operation, each as it comes, and again as a good one with some of its fields.

    The good ones are there because random words hardly ever make a whole conversation; they are sent as they are, too,
    and streamed. Returns the statuses seen.
    """
    good = [body for path, body in GOOD if path == operation.path]
    statuses = set()

    @given(case=operation.as_strategy(), data=st.data())
    @settings(
        max_examples=25,
        phases=[Phase.explicit, Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any, data: st.DataObject) -> None:
        if good and isinstance(case.body, dict) and data.draw(st.booleans()):
            names = data.draw(st.sets(st.sampled_from(sorted(case.body)), max_size=2)) if case.body else set()
            case.body = {name: case.body[name] for name in names} | data.draw(st.sampled_from(good))
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        if response.status_code in OWN_ENDS:
            return
        case.validate_response(response, checks=CHECKS)

    check()
    streamed = [body | {"stream": True} for body in good] if operation.path in STREAMS else []
    for body in good + streamed:
        case = operation.Case(body=body)
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        assert response.status_code == 200, response.text
        case.validate_response(response, checks=CHECKS)
    return statuses


HELLO = [{"role": "user", "content": "hello"}]
ASKING_FOR_MUCH = {"n": 2, "max_tokens": 3, "return_token_ids": True, "stop": "never", "metadata": {"a": "b"}}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2} | ASKING_FOR_MUCH),
    ("/v1/completions", {"prompt": "hello"}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2, "echo": False} | ASKING_FOR_MUCH),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 0, "echo": True}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/tokenize", {"messages": HELLO}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/v1/responses", {"input": "hello"}),
    ("/v1/responses", {"input": HELLO, "max_output_tokens": 3, "instructions": "Be kind.", "metadata": {"a": "b"}}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 3}),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 300, "system": "Be kind.", "stop_sequences": ["never"]}),
    ("/v1/messages/count_tokens", {"messages": HELLO}),
    ("/generate", {"text": "hello"}),
    ("/generate", {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 3}}),
]
LOOKED_AT = ["/v1/models", "/version", "/server_info", "/model_info", "/tokenizer_info", "/v1/loads"]


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_good_requests_are_answered_as_described(server: Server, path: str, body: dict[str, Any]) -> None:
    response = httpx.post(f"{server.url}{path}", json=body)
    assert response.status_code == 200, response.text
    ANSWERS[path].model_validate_json(response.content, strict=True)


@pytest.mark.parametrize("path", LOOKED_AT)
def test_what_is_looked_at_is_as_described(server: Server, path: str) -> None:
    response = httpx.get(f"{server.url}{path}")
    assert response.status_code == 200, response.text
    ANSWERS[path].model_validate_json(response.content, strict=True)
