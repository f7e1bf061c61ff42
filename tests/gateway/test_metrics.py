"""The metrics page: what it shows, under which names, and what it must never show."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.company import Company
from gateway.metrics import buckets
from gateway.metrics.catalog import OWN
from gateway.metrics.collect import collect
from gateway.metrics.page import MetricsPage, families
from gateway.metrics.requests import RequestMetrics
from ipc.codec import decode, encode
from ipc.config import GatewayConfig
from ipc.control_messages import Beat, RingState
from ipc.ledger import Ledger, add
from ipc.messages import LENGTH, Generate
from scheduler_proc.tally import Tally
from tests.gateway.scripted_ring import CONFIG, MS, NAMES, ScriptedRing, head, tail

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
VLLM_HISTOGRAMS = {
    "time_to_first_token_seconds": buckets.TTFT,
    "inter_token_latency_seconds": buckets.INTER_TOKEN,
    "request_time_per_output_token_seconds": buckets.INTER_TOKEN,
    "e2e_request_latency_seconds": buckets.LATENCY,
    "request_queue_time_seconds": buckets.QUEUE,
    "request_inference_time_seconds": buckets.LATENCY,
    "request_prefill_time_seconds": buckets.LATENCY,
    "request_decode_time_seconds": buckets.LATENCY,
}
# The bounds that vLLM's histograms have: queries that were written for them must go on to work.
VLLM_TTFT = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
VLLM_ITL = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
VLLM_LONG = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def page(http: aiohttp.ClientSession) -> dict[str, Metric]:
    """The families of the page, as the client library's parser reads them."""
    async with http.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    found = list(text_string_to_metric_families(text))
    names = [family.name for family in found]
    assert len(names) == len(set(names))
    return {family.name: family for family in found}


def samples(families: dict[str, Metric]) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


async def read(http: aiohttp.ClientSession, body: dict[str, Any]) -> int:
    """Ask for a chat completion and read its answer; the status."""
    async with http.post("/v1/chat/completions", json=body) as response:
        await response.read()
        return response.status


async def test_a_request_is_measured(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object]
) -> None:
    ring.script = lambda generate: ring.bring(
        [head(generate.rid)], [(generate.rid, "abc", [1, 2, 3])], [tail(generate.rid, 3)]
    )
    async with http.post("/v1/chat/completions", json=chat_body | {"max_tokens": 7}) as response:
        assert response.status == 200
    found = samples(await page(http))
    assert value(found, "quintet_time_to_first_token_seconds_count") == 1
    assert value(found, "quintet_time_to_first_token_seconds_sum") == pytest.approx(0.005)
    assert value(found, "quintet_request_seconds_sum") == pytest.approx(0.007)
    assert value(found, "quintet_request_queue_seconds_sum") == pytest.approx(0.001)
    assert value(found, "quintet_inter_token_seconds_count") == 2
    assert value(found, "quintet_inter_token_seconds_sum") == pytest.approx(0.002)
    assert value(found, "quintet_time_per_output_token_seconds_sum") == pytest.approx(0.001)
    assert value(found, "quintet_request_max_tokens_sum") == 7
    assert value(found, "quintet_request_generation_tokens_sum") == 3
    assert value(found, "quintet_request_stage_seconds_sum", stage="batch_wait") == pytest.approx(0.00025)
    labels = {"route": "/v1/chat/completions"}
    assert value(found, "quintet_http_responses_total", status="2xx", **labels) == 1
    assert value(found, "quintet_http_responses_total", status="4xx", **labels) == 0
    engine = {"model_name": "tiny", "engine": "0"}
    assert value(found, "vllm:time_to_first_token_seconds_count", **engine) == 1


async def test_gaps_of_a_stream_are_those_of_the_steps(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object]
) -> None:
    metrics = ring.engine.observer.metrics
    body = chat_body | {"stream": True, "n": 2}
    async with asyncio.TaskGroup() as tasks:
        response = tasks.create_task(read(http, body))
        generate = await ring.next(Generate)
        rids = [generate.rid, generate.rid + 1]
        sequences = next(iter(ring.engine.streams)).sequences
        ring.bring([head(rid) for rid in rids])
        for at, members in ((11 * MS, sequences), (14 * MS, sequences[:1]), (19 * MS, sequences)):
            metrics.text(members, at)
        ring.bring(tails=[tail(rid, 3, LENGTH) for rid in rids])
    assert response.result() == 200
    exported = metrics.export()["histograms"]
    assert sum(exported["ttft"]["counts"]) == 2
    assert exported["ttft"]["sum"] == pytest.approx(0.020)
    assert sum(exported["inter_token"]["counts"]) == 3
    assert exported["inter_token"]["sum"] == pytest.approx(0.003 + 0.005 + 0.008)


async def test_the_scheduler_and_the_processes_are_on_the_page(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    stats = {
        "waiting": 3, "held": 2, "running": 5, "blocks_total": 100, "blocks_in_use": 25, "blocks_free": 75,
        "prefix_queries": 70, "prefix_hits": 32, "block_size": 16, "tally": Tally().export(),
        "process": {"started_ns": 1, "cpu_s": 1.5, "rss_bytes": 4096},
    }  # fmt: skip
    ring.view.update(Beat("scheduler", 9, stats))
    found = samples(await page(http))
    engine = {"model_name": "tiny", "engine": "0"}
    assert value(found, "vllm:num_requests_waiting", **engine) == 5
    assert value(found, "vllm:num_requests_waiting_by_reason", reason="capacity", **engine) == 3
    assert value(found, "vllm:num_requests_waiting_by_reason", reason="deferred", **engine) == 2
    assert value(found, "vllm:kv_cache_usage_perc", **engine) == 0.25
    assert value(found, "vllm:prefix_cache_hits_total", **engine) == 32
    assert value(found, "vllm:cache_config_info", block_size="16", num_gpu_blocks="100", **engine) == 1
    for reason in ("stop", "length", "abort", "error", "repetition"):
        assert value(found, "vllm:request_success_total", finished_reason=reason, **engine) == 0
    assert value(found, "vllm:admission_rejections_total", reason="max_num_queued_reqs", model_name="tiny") == 0
    assert value(found, "vllm:iteration_tokens_total_count", **engine) == 0
    assert value(found, "quintet_kv_blocks", state="in_use") == 25
    assert value(found, "quintet_queue_rejections_total", reason="tokens") == 0
    assert value(found, "quintet_process_cpu_seconds_total", process="scheduler") == 1.5
    assert value(found, "quintet_queue_wait_seconds_count", kind="preempted") == 0


async def test_bounds_are_fine_and_hold_those_of_vllm(http: aiohttp.ClientSession) -> None:
    found = await page(http)
    for name, bounds in VLLM_HISTOGRAMS.items():
        shown = [
            float(sample.labels["le"]) for sample in found[f"vllm:{name}"].samples if sample.name.endswith("_bucket")
        ]
        assert shown == [*bounds, float("inf")], name
        assert shown == sorted(shown)
    assert set(VLLM_TTFT) <= set(buckets.TTFT)
    assert set(VLLM_ITL) <= set(buckets.INTER_TOKEN)
    assert set(VLLM_LONG) <= set(buckets.LATENCY) <= set(buckets.QUEUE)
    assert (buckets.TTFT[0], buckets.LATENCY[0]) == (0.001, 0.001)
    assert (buckets.QUEUE[0], buckets.INTER_TOKEN[0]) == (0.0001, 0.0001)


async def test_what_clients_invent_never_becomes_a_label(
    ring: ScriptedRing, http: aiohttp.ClientSession, chat_body: dict[str, object]
) -> None:
    before = set(samples(await page(http)))
    metrics = ring.engine.observer.metrics

    async def invent(number: int) -> None:
        name = secrets.token_hex(8)
        if number % 2:
            async with http.post("/v1/chat/completions", json=chat_body | {"model": name}) as response:
                assert response.status == 404
        else:
            async with http.request(secrets.choice(["GET", "POST"]), f"/{name}/{number}") as response:
                assert response.status == 404

    for start in range(0, 10_000, 100):
        await asyncio.gather(*(invent(number) for number in range(start, start + 100)))
    figures = collect(ring.view, metrics, {})
    after = samples({family.name: family for family in families(figures, with_vllm_names=True)})
    assert set(after) == before
    assert value(after, "quintet_http_responses_total", route="other", status="4xx") == 5000
    assert value(after, "quintet_http_responses_total", route="/v1/chat/completions", status="4xx") == 5000


async def test_a_storm_of_scrapes_makes_one_text(ring: ScriptedRing) -> None:
    made = 0

    def figures() -> Any:
        nonlocal made
        made += 1
        return collect(ring.view, RequestMetrics(), {})

    page = MetricsPage(figures, with_vllm_names=True, company=Company())
    answers = await asyncio.gather(*(page.metrics(None) for _ in range(200)))  # type: ignore[arg-type]
    assert made == 1
    assert len({answer.body for answer in answers}) == 1
    page._made -= 1.0  # a second later
    await page.metrics(None)  # type: ignore[arg-type]
    assert made == 2


@pytest.mark.parametrize("config", [replace(CONFIG, enable_metrics=False)])
async def test_the_page_can_be_switched_off(http: aiohttp.ClientSession, config: GatewayConfig) -> None:
    async with http.get("/metrics") as response:
        assert response.status == 404


@pytest.mark.parametrize("config", [replace(CONFIG, vllm_metrics=False)])
async def test_the_names_of_vllm_can_be_switched_off(http: aiohttp.ClientSession, config: GatewayConfig) -> None:
    names = set(await page(http))
    assert names
    assert not any(name.startswith("vllm:") for name in names)


def test_counts_go_on_when_a_process_is_started_again() -> None:
    ledger = Ledger()
    ledger.update(Beat("scheduler", 1, {"steps": 5, "tally": {"ends": {"stop": 2}}, "process": {"started_ns": 1}}))
    ledger.update(Beat("scheduler", 1, {"steps": 7, "tally": {"ends": {"stop": 3}}, "process": {"started_ns": 1}}))
    ledger.update(Beat("scheduler", 1, {"steps": 1, "tally": {"ends": {"stop": 0}}, "process": {"started_ns": 2}}))
    assert ledger.of("scheduler")["steps"] == 1
    assert ledger.counted("scheduler")["steps"] == 8
    assert ledger.counted("scheduler")["tally"] == {"ends": {"stop": 3}}
    ledger.update(Beat("scheduler", 1, {"steps": 4, "tally": {"ends": {"stop": 1}}, "process": {"started_ns": 3}}))
    assert ledger.counted("scheduler")["steps"] == 12
    # A scheduler that begins anew in the same process, because the model did.
    ledger.update(Beat("scheduler", 1, {"steps": 2, "runs": 2, "process": {"started_ns": 3}}))
    assert ledger.counted("scheduler")["steps"] == 14


def test_a_gateway_goes_on_from_what_others_have_gathered() -> None:
    ledger, successors = Ledger(), Ledger()
    ledger.update(Beat("gateway", 1, {"metrics": {"refused": 2}, "process": {"started_ns": 1}}))
    ledger.update(Beat("gateway.1", 1, {"metrics": {"refused": 5}, "process": {"started_ns": 1}}))
    ledger.update(Beat("gateway", 1, {"metrics": {"refused": 1}, "process": {"started_ns": 2}}))
    _, counted = decode(encode(ledger.export(), epoch=1))
    successors.go_on_from(counted)
    for name in ("gateway", "gateway.1"):
        assert successors.counted(name) == ledger.counted(name)
    for each in (ledger, successors):  # and from there on both hear of the same
        each.update(Beat("gateway", 1, {"metrics": {"refused": 4}, "process": {"started_ns": 3}}))
        assert each.counted("gateway")["metrics"] == {"refused": 7}


async def test_gateways_answer_for_each_other(ring: ScriptedRing) -> None:
    """With two of them, each shows the sum of what both have reported."""
    ring.view.update(RingState(dict.fromkeys((*NAMES, "gateway.1"), "ready")))
    own, other = RequestMetrics(), RequestMetrics()
    for metrics in (own, other):
        metrics.expect(["/x"])
        metrics.asked(n=1, max_tokens=4)
        metrics.answered("/x", 200)
    other.answered("/x", None)
    other.refuse()
    for name, metrics in (("gateway", own), ("gateway.1", other)):
        stats = {"requests": 2, "metrics": metrics.export(), "process": {"started_ns": 1}}
        ring.view.update(Beat(name, 1, stats))
    own.asked(n=1, max_tokens=4)  # not reported yet: the other gateway cannot know it either
    figures = collect(ring.view, own, {"requests": 9})
    found = samples({family.name: family for family in families(figures, with_vllm_names=False)})
    assert value(found, "quintet_request_choices_count") == 2
    assert value(found, "quintet_http_responses_total", route="/x", status="2xx") == 2
    assert value(found, "quintet_http_responses_total", route="/x", status="left") == 1
    assert value(found, "quintet_queue_rejections_total", reason="requests") == 1
    assert value(found, "quintet_requests_in_flight") == 4


def test_sums_keep_bounds_and_what_one_side_lacks() -> None:
    one = {"bounds": [1, 2], "counts": [1, 0, 2], "sum": 5.0, "only": 3}
    assert add(one, {"bounds": [1, 2], "counts": [0, 1, 1], "sum": 1.5, "new": {"x": 1}}) == {
        "bounds": [1, 2], "counts": [1, 1, 3], "sum": 6.5, "only": 3, "new": {"x": 1},
    }  # fmt: skip
    # What is no list of counts is taken as it is now.
    assert add({"names": ["a"], "counts": [1]}, {"names": ["b"], "counts": [1, 2]}) == {
        "names": ["b"],
        "counts": [1, 2],
    }


def documented() -> Iterator[str]:
    for line in (DOCS / "metrics.md").read_text().splitlines():
        if match := re.match(r"\| `(quintet_[a-z_]+|vllm:[a-z0-9_]+)`", line):
            yield match[1]


async def test_every_metric_is_documented(http: aiohttp.ClientSession) -> None:
    ours = {f"{metric.name}_total" if metric.kind == "counter" else metric.name for metric in OWN}
    names = list(documented())
    assert {name for name in names if name.startswith("quintet_")} == ours
    assert len(names) == len(set(names))
    shown = {f"{name}_total" if family.type == "counter" else name for name, family in (await page(http)).items()}
    assert {name for name in shown if name.startswith("vllm:")} <= set(names)
