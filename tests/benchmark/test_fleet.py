"""Several simulated rings behind a router: nothing is lost, the same run repeats, and each rule does what it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmark import simulate as command
from benchmark.experiment import Replicas
from benchmark.fleet import ROUTERS, Fleet
from benchmark.overheads import FREE
from benchmark.presets import LONG
from benchmark.ring_model import Request
from benchmark.simulation import simulate
from ipc.options import OptionError
from tests.benchmark.test_simulation import COSTLY, asked


def chats(router: str, *flags: str, count: int = 3, **replicas: Any) -> Any:
    """Conversations with pauses, so many that one cache cannot hold all that are open."""
    argv = ["--scenario", "multi_turn", "--requests", "240", "--rate", "2", "--think-s", "10", *flags, "--",
            "--mock-profile=gpu", "--num-gpu-blocks-override=512", "--max-model-len=2048"]  # fmt: skip
    return replace(asked(*argv), replicas=Replicas(count, router, **replicas))


@pytest.mark.parametrize("router", ROUTERS)
def test_every_request_comes_to_its_own_end(router: str) -> None:
    run, steps, figures = simulate(chats(router), COSTLY)
    assert all(measured.succeeded for measured in run.measured)
    assert figures.client.requests == len(run.measured) == 240
    assert (figures.replicas, figures.router, figures.think_s) == (3, router, 10)
    assert figures.server.prefix_hits == figures.client.cached_tokens
    assert figures.server.prefix_queries == figures.client.prompt_tokens
    assert figures.server.blocks["total"] == 3 * 512
    assert figures.server.blocks["in_use"] == 0
    assert figures.server.steps == len(steps)


def test_prefix_routing_saves_most_and_costs_nobody() -> None:
    found = {router: simulate(chats(router), FREE)[2] for router in ROUTERS}
    saved = {router: figures.client.cached_tokens for router, figures in found.items()}
    assert saved["prefix"] > 1.8 * saved["random"]
    assert saved["prefix"] > 1.8 * saved["least-loaded"]
    slowest = {router: figures.client.ttft.p99 for router, figures in found.items() if figures.client.ttft}
    assert slowest["prefix"] <= slowest["random"]


def test_the_same_run_gives_the_same_figures_and_another_seed_others() -> None:
    for router in ROUTERS:
        assert simulate(chats(router), COSTLY)[2] == simulate(chats(router), COSTLY)[2]
    assert simulate(chats("random"), COSTLY)[2].client != simulate(chats("random", "--seed", "1"), COSTLY)[2].client


def test_one_machine_is_slower_than_three() -> None:
    crowd = ("--scenario", "cache_miss", "--requests", "60", "--concurrency", "60")
    apart = replace(asked(*crowd, "--", "--mock-profile=instant"), replicas=Replicas(3, "least-loaded"))
    together = replace(apart, replicas=Replicas(3, "least-loaded", one_machine=True))
    assert simulate(together, COSTLY)[2].client.wall_s > 1.5 * simulate(apart, COSTLY)[2].client.wall_s


@pytest.mark.parametrize("router", ROUTERS)
def test_where_requests_go(router: str) -> None:
    """A hundred that come at once and ask the same, behind one that has made the prompt known at one replica."""
    options = asked("--", "--mock-profile=gpu").options
    fleet = Fleet(Replicas(4, router), options, FREE, stream=True)
    ends = Counter[str]()

    def send(number: int) -> None:
        fleet.send(Request(LONG, "", 0, lambda measured: ends.update([measured.finish_reason]), max_tokens=20))

    send(0)
    fleet.loop.run()
    for number in range(100):
        send(number)
    shares = sorted(fleet._loads.values())
    fleet.loop.run()
    assert ends == {"length": 101}
    assert not any(fleet._loads.values())
    if router == "least-loaded":
        assert shares == [25] * 4
    elif router == "prefix":  # one is as full as it may be, then the next on the ring; it has them all in its cache
        assert shares[-1] == max(shares) <= 1.25 * 101 / 4 + 1
        assert min(shares) < 25
    else:
        assert 10 < min(shares) <= max(shares) < 45


def test_a_conversation_waits_between_its_turns() -> None:
    one = asked("--scenario", "multi_turn", "--requests", "6", "--concurrency", "1", "--think-s", "5")
    quick = asked("--scenario", "multi_turn", "--requests", "6", "--concurrency", "1")
    pauses = [one.scenario.pause_s(0, index) for index in range(1, 6)]
    assert len(set(pauses)) == 5
    slow_s, quick_s = (simulate(each, FREE)[2].client.wall_s for each in (one, quick))
    assert slow_s - quick_s == pytest.approx(sum(pauses), rel=0.01)
    with pytest.raises(OptionError, match="--think-s: smoke has no conversations"):
        asked("--scenario", "smoke", "--think-s", "1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--router", "prefix"], "--router and --one-machine need --replicas"),
        (["--one-machine"], "--router and --one-machine need --replicas"),
        (["--replicas", "2", "3"], "several values of --replicas or --router need --sweep"),
        (["--replicas", "0"], "must be at least 1"),
        (["--replicas", "2", "--router", "best"], "invalid choice: 'best'"),
        (["--replicas", "2", "--compare-live"], "--compare-live starts one ring; several need --base-url"),
        (["--compare-live", "--base-url", "x"], "several need --base-url, one does without"),
        (["--replicas", "2", "--base-url", "x"], "--base-url needs --compare-live"),
    ],
)
def test_flags_that_mean_nothing_are_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(argv)
    assert message in capsys.readouterr().err


def test_a_sweep_runs_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--scenario", "smoke", "--requests", "12", "--sweep", "--replicas", "1", "2", "--router", *ROUTERS]
    assert command.main(argv) == 0
    shown = capsys.readouterr().out
    assert [shown.count(router) for router in ROUTERS] == [1, 1, 1]
