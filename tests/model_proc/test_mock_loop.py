"""The loop of the model's process, with a virtual clock: how it waits for plans and for the ends of steps."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.control_messages import Lost, RunnerReady
from ipc.messages import Admit, Plan, Result, Sampling
from ipc.options import complete
from ipc.spans import Spans
from model_proc.main import POLL_NS, SLACK_NS, execute
from model_proc.mock import MockRunner, describe_mock

MS = 1_000_000
US = 1_000
READY = RunnerReady(100, 16, 1000, 8, Ids("i", [2]))
LOOK_NS = 10_000  # what it costs to look for messages without waiting


class World:
    """A process of the ring and its clock. Messages arrive at set times; after the last one it is told to leave.

    Time passes only in `receive`: until a message, or until the time limit and, as on a real machine, a little longer.
    """

    def __init__(self, arrivals: dict[int, list[Any]], until_ns: int) -> None:
        self.name = "model"
        self.now = 0
        self.progress = 0
        self.spans = Spans()
        self.running = True
        self.sent: list[tuple[int, Any]] = []  # when, what
        self.waits: list[float | None] = []  # of `receive`, seconds
        self._arrivals = deque(sorted(arrivals.items()))
        self._until_ns = until_ns

    def clock(self) -> int:
        return self.now

    def peer(self, name: str) -> World:
        assert name == "scheduler"
        return self

    def outbox(self, name: str) -> World:
        assert name == self.name
        return self

    def send(self, result: Result) -> None:
        self.sent.append((self.now, result))

    def receive(self, timeout_s: float | None = None, working: bool = False) -> list[Any]:
        assert working == (timeout_s is not None), "it waits for a step, or for work"
        self.waits.append(timeout_s)
        if timeout_s is None:
            limit = self._until_ns
        else:
            limit = self.now + (round(timeout_s * 1e9) + SLACK_NS if timeout_s else LOOK_NS)
        if self._arrivals and self._arrivals[0][0] <= limit:
            at, messages = self._arrivals.popleft()
            self.now = max(self.now, at)
            return messages
        self.now = max(self.now, limit)
        self.running = self.now < self._until_ns
        return []

    def run(self, runner: Any) -> None:
        execute(self, runner, READY, self.clock)  # type: ignore[arg-type]  # as much of a Process as it uses


def prefill(step: int, tokens: int) -> Plan:
    admit = Admit(step, step, Ids("i", [300] * tokens), tokens, 0, [], Sampling())
    return Plan(step, [], [admit], [step], [tokens], [0], [])


def mock(world: World, folder: Path, **options: Any) -> MockRunner:
    """A mock whose prefills cost a tenth of a millisecond a token."""
    path = folder / "linear.toml"
    path.write_text("[step]\nper_token_ms = 0.1\n")
    config = section(ModelConfig, complete({"model": "mock", "mock_profile": str(path), **options}))
    return MockRunner(config, describe_mock(config), world.clock)


def test_idle_is_blocked(tmp_path: Path) -> None:
    world = World({}, until_ns=60_000 * MS)
    world.run(mock(world, tmp_path))
    assert world.waits == [None]


def test_a_step_is_waited_for_with_allowance_for_a_late_wake_up(tmp_path: Path) -> None:
    world = World({7 * MS: [prefill(0, 203)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path))
    [(sent, result)] = world.sent
    assert (result.started_ns, result.finished_ns) == (7 * MS, 27_300 * US)
    assert result.finished_ns <= sent <= result.finished_ns + LOOK_NS
    assert [wait for wait in world.waits if wait != 0.0] == [None, (20_300 * US - SLACK_NS) / 1e9, None]


def test_the_next_plan_is_launched_while_a_step_runs(tmp_path: Path) -> None:
    world = World({0: [prefill(0, 50)], 2 * MS: [prefill(1, 30)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path))
    assert [(at, r.step, r.started_ns) for at, r in world.sent] == [(5 * MS, 0, 0), (8 * MS, 1, 5 * MS)]


def test_a_free_lane_begins_at_once_and_ends_first(tmp_path: Path) -> None:
    world = World({0: [prefill(0, 200)], 3 * MS: [prefill(1, 50)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path, mock_lanes=2))
    assert [(at, r.step, r.started_ns) for at, r in world.sent] == [(8 * MS, 1, 3 * MS), (20 * MS, 0, 0)]


def test_a_plan_is_read_as_it_comes(tmp_path: Path) -> None:
    arrival = 19_950 * US
    world = World({0: [prefill(0, 209)], arrival: [prefill(1, 50)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path, mock_lanes=2))
    assert next(result.started_ns for _, result in world.sent if result.step == 1) == arrival


def test_several_that_end_together_are_all_sent(tmp_path: Path) -> None:
    world = World({MS: [prefill(step, 50) for step in range(3)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path, mock_lanes=3))
    assert [(at, result.step) for at, result in world.sent] == [(6 * MS, 0), (6 * MS, 1), (6 * MS, 2)]
    assert world.progress == 6  # launches and results


def test_one_behind_the_other_on_one_lane(tmp_path: Path) -> None:
    world = World({MS: [prefill(step, 50) for step in range(3)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path))
    assert [(at, result.step) for at, result in world.sent] == [(6 * MS, 0), (11 * MS, 1), (16 * MS, 2)]


class Unforeseeable:
    """A runner with one step in flight that does not say when it will be done."""

    next_done_ns = None

    def __init__(self, world: World, done_ns: int) -> None:
        self.in_flight = 1
        self._world = world
        self._done_ns = done_ns

    def is_done(self) -> bool:
        return self._world.now >= self._done_ns

    def collect(self) -> Result:
        self.in_flight = 0
        return Result(0, [], Ids("i"), None, [], [], 0, 0)


def test_a_runner_that_does_not_say_is_polled() -> None:
    world = World({}, until_ns=100 * MS)
    world.run(Unforeseeable(world, 200 * US))
    assert world.waits[:3] == [POLL_NS / 1e9] * 3
    assert [at for at, _ in world.sent] == [3 * (POLL_NS + SLACK_NS)]


def test_the_successor_of_a_lost_scheduler_finds_an_empty_runner(tmp_path: Path) -> None:
    """It is told what there is to schedule; the steps of the dead one are not answered any more."""
    lost = Lost("scheduler", 3, 9)
    world = World({0: [prefill(0, 500)], 10 * MS: [lost], 20 * MS: [prefill(0, 30)]}, until_ns=200 * MS)
    runner = mock(world, tmp_path)
    world.run(runner)
    (at, ready), (_, result) = world.sent
    assert (at, ready) == (10 * MS, READY)
    assert result.slots == [0]
    assert runner.in_flight == 0


def test_the_loss_of_another_process_changes_nothing(tmp_path: Path) -> None:
    world = World({0: [prefill(0, 50)], 2 * MS: [Lost("gateway", 3, 9)]}, until_ns=100 * MS)
    world.run(mock(world, tmp_path))
    assert [at for at, _ in world.sent] == [5 * MS]
