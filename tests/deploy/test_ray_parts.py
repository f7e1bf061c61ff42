"""The parts of the Ray application that need no cluster: what a prompt is, what all rings say together, arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.ray.everywhere import labelled, merge_for, summed, whoever_knows
from deploy.ray.http import OF_THE_CLIENT, Answer, Head, Request, end_to_end
from deploy.ray.prompts import NOTHING, Prompt, prompt_of

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def posted(path: str, body: Any) -> Request:
    return Request("POST", path, [], body if isinstance(body, bytes) else orjson.dumps(body))


def answer(replica: str, body: Any, status: int = 200) -> Answer:
    return Answer(replica, Head(status, []), body if isinstance(body, bytes) else orjson.dumps(body))


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[7, 8], [[7, 8], [9]]])
def test_ids_need_no_asking(prompt: Any) -> None:
    for path, name in (("/v1/completions", "prompt"), ("/generate?a=b", "input_ids")):
        found = prompt_of(posted(path, {name: prompt, "cache_salt": "s"}))
        assert (found.token_ids.tolist(), found.question, found.salt) == ([7, 8], None, "s")


@pytest.mark.parametrize("prompt", ["hello", ["hello", "you"]])
def test_of_several_texts_the_first_is_asked_about(prompt: Any) -> None:
    assert prompt_of(posted("/v1/completions", {"model": "m", "prompt": prompt})).question == {
        "model": "m",
        "prompt": "hello",
    }
    assert prompt_of(posted("/generate", {"text": prompt})).question == {"prompt": "hello"}


def test_the_fields_of_a_chat_that_make_its_prompt_are_asked_about() -> None:
    body = {
        "messages": HELLO, "tools": [TOOL], "temperature": 0, "chat_template_kwargs": {"a": 1}, "prompt_cache_key": "k",
    }  # fmt: skip
    found = prompt_of(posted("/v1/chat/completions", body))
    assert found == Prompt(
        question={"messages": HELLO, "tools": [TOOL], "chat_template_kwargs": {"a": 1}}, conversation="k"
    )
    found = prompt_of(posted("/v1/chat/completions", body | {"tool_choice": "none"}))
    assert found.question is not None
    assert "tools" not in found.question  # the gateway does not show them to the model either


def test_other_dialects_are_asked_about_as_chats() -> None:
    asked = [
        prompt_of(posted("/v1/messages", {"model": "m", "max_tokens": 5, "system": "be kind", "messages": HELLO})),
        prompt_of(posted("/v1/responses", {"model": "m", "store": False, "instructions": "be kind", "input": "hello"})),
    ]
    for found in asked:
        assert found.question == {"model": "m", "messages": [{"role": "system", "content": "be kind"}, *HELLO]}


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "/v1/models", [], b""),
        posted("/v1/embeddings", {"input": "hello"}),
        posted("/v1/completions", b"{"),
        posted("/v1/completions", []),
        posted("/v1/completions", {"prompt": []}),
        posted("/v1/completions", {"prompt": [2**31]}),
        posted("/v1/completions", {"prompt": "a", "cache_salt": 5}),
        posted("/v1/messages", {"messages": "hello"}),
    ],
)
def test_what_has_no_prompt_or_a_wrong_one_is_left_to_the_ring(request_: Request) -> None:
    assert prompt_of(request_) == NOTHING


# -- all rings ---------------------------------------------------------------------------------------------------------


def test_which_routes_concern_all_rings() -> None:
    assert merge_for(Request("GET", "/metrics", [], b"")) is labelled
    assert merge_for(Request("GET", "/v1/loads?x=1", [], b"")) is summed
    assert merge_for(Request("POST", "/flush_cache", [], b"")) is summed
    assert merge_for(Request("GET", "/v1/requests/a/b", [], b"")) is whoever_knows
    assert merge_for(Request("POST", "/v1/responses/a/cancel", [], b"")) is whoever_knows
    assert merge_for(Request("POST", "/v1/responses", [], b"")) is None
    assert merge_for(Request("GET", "/v1/models", [], b"")) is None


def test_numbers_are_added_up() -> None:
    loads = [
        {"running": n, "in_flight": {"requests": n, "sequences": 0}, "processes": {"model": {"steps": n}}}
        for n in (1, 2)
    ]
    found = orjson.loads(summed([answer("a", loads[0]), answer("b", loads[1])]).body)
    in_flight = {"requests": 3, "sequences": 0}
    assert found == {"running": 3, "in_flight": in_flight, "replicas": {"a": loads[0], "b": loads[1]}}


def test_a_refusal_of_one_ring_is_the_answer() -> None:
    refusal = answer("b", {"error": {}}, 401)
    assert summed([answer("a", {"running": 1}), refusal]) is refusal
    assert labelled([answer("a", b""), refusal]) is refusal


def test_a_request_is_found_wherever_it_is() -> None:
    here, nowhere = answer("b", {"id": 1}), answer("a", {"error": {}}, 404)
    assert whoever_knows([nowhere, here]) is here
    assert whoever_knows([nowhere]) is nowhere


def test_metrics_of_all_rings_are_one_page() -> None:
    page = (
        b'# HELP q_total Some.\n# TYPE q_total counter\nq_total{model="m"} %d.0\n# HELP g One.\n# TYPE g gauge\ng 2.0\n'
    )
    found = labelled([answer("a", page % 1), answer("b", page % 3)]).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(found)}
    assert {(s.labels["replica"], s.labels["model"], s.value) for s in families["q"].samples} == {
        ("a", "m", 1.0),
        ("b", "m", 3.0),
    }
    assert [(s.labels, s.value) for s in families["g"].samples] == [({"replica": "a"}, 2.0), ({"replica": "b"}, 2.0)]
    assert found.count("# HELP") == found.count("# TYPE") == 2


def test_headers_of_one_connection_do_not_travel() -> None:
    given = [("Host", "a"), ("Connection", "close"), ("Content-Length", "3"), ("Authorization", "Bearer k")]
    assert end_to_end(given, OF_THE_CLIENT) == [("Authorization", "Bearer k")]


# -- arguments and autoscaling -----------------------------------------------------------------------------------------


def test_the_file_is_what_serve_and_the_application_take() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    from benchmark.ray_cluster import APPLICATION
    from deploy.ray.app import build

    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(APPLICATION.read_text()))
    (application,) = config.applications
    assert {each.name for each in application.deployments} == {"FrontDoor", "Ring"}
    assert application.import_path == "deploy.ray.app:build"
    build(application.args)


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ({"modle": "mock"}, r"args.modle: .*known are model and flags"),
        ({"flags": "--max-num-seqs=4"}, r"args.flags: .*list"),
        ({"flags": ["--max-num-seq=4"]}, r"args.flags: unknown option --max-num-seq=4; did you mean '--max-num-seqs'"),
        ({"flags": ["--port=1"]}, r"args.flags: --port is not for a ring .* leave it out"),
        ({"flags": ["--gateway-workers=2"]}, r"args.flags: --gateway-workers is not for a ring"),
        ({"flags": ["--kv-events-endpoint=tcp://127.0.0.1:5557"]}, r"args.flags: --kv-events-endpoint is not"),
    ],
)
def test_a_wrong_argument_is_named(args: dict[str, Any], fault: str) -> None:
    pytest.importorskip("ray.serve")
    from deploy.ray.app import ArgumentError, ring_options

    with pytest.raises(ArgumentError, match=fault):
        ring_options(args)


@pytest.mark.parametrize(("requests", "queued", "wanted"), [(64.0, 0.0, 2.0), (8.0, 5000.0, 5.0), (0.0, 0.0, 0.0)])
def test_requests_or_queued_tokens_ask_for_replicas(requests: float, queued: float, wanted: float) -> None:
    pytest.importorskip("ray.serve")
    from deploy.ray.autoscaling import RingPolicy

    context: Any = SimpleNamespace(
        total_num_requests=requests,
        aggregated_metrics={"queued_tokens": {"a": queued / 2, "b": queued / 2}} if queued else None,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 32.0),
    )
    assert RingPolicy(target_queued_tokens=1000.0)(context) == (wanted, {})
