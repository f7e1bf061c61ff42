"""The simulator's time, cores and threads."""

from __future__ import annotations

from typing import Any

from benchmark.virtual_time import SLICE_NS, Action, Cores, EventLoop, Process, Thread


def test_events_happen_in_order_of_time_and_then_of_planning() -> None:
    loop, seen = EventLoop(), []
    loop.at(20, lambda: seen.append((loop.now, "late")))
    loop.at(10, lambda: seen.append((loop.now, "first")))
    loop.at(10, lambda: seen.append((loop.now, "second")))
    loop.run()
    assert seen == [(10, "first"), (10, "second"), (20, "late")]


def test_an_event_for_the_past_happens_now() -> None:
    loop, seen = EventLoop(), []
    loop.at(10, lambda: loop.at(3, lambda: seen.append(loop.now)))
    loop.run()
    assert seen == [10]


def cores_of(loop: EventLoop, count: int, delay_ns: int = 0) -> Cores:
    return Cores(loop, count, [delay_ns], seed=0)


def recorder(loop: EventLoop, cores: Cores, cost_ns: int, takes_all: bool = False) -> tuple[Thread, list[Any]]:
    """A thread whose work always costs the same, and a list of what it did: when begun, what, when ended."""
    log: list[Any] = []

    def work(messages: list[Any], now: int) -> tuple[int, Action]:
        return cost_ns, lambda: log.append((now, messages, loop.now))

    return Thread(loop, cores, work, takes_all), log


def test_a_thread_works_on_one_message_after_the_other() -> None:
    loop = EventLoop()
    thread, log = recorder(loop, cores_of(loop, 2), 5)
    thread.put("a")
    thread.put("b")
    loop.at(100, lambda: thread.put("c"))
    loop.run()
    assert log == [(0, ["a"], 5), (5, ["b"], 10), (100, ["c"], 105)]
    assert thread.busy_ns == 15


def test_a_thread_that_takes_all_takes_what_came_while_it_worked() -> None:
    loop = EventLoop()
    thread, log = recorder(loop, cores_of(loop, 1), 5, takes_all=True)
    for message in "abc":
        thread.put(message)
    loop.run()
    assert log == [(0, ["a"], 5), (5, ["b", "c"], 10)]


def test_a_thread_keeps_its_core_for_a_slice_and_then_goes_behind_the_others() -> None:
    loop, half = EventLoop(), SLICE_NS // 2
    cores = cores_of(loop, 1)
    first, first_log = recorder(loop, cores, half)
    second, second_log = recorder(loop, cores, half)
    for message in "abc":
        first.put(message)
    second.put("x")
    loop.run()
    assert first_log == [(0, ["a"], half), (half, ["b"], 2 * half), (3 * half, ["c"], 4 * half)]
    assert second_log == [(2 * half, ["x"], 3 * half)]


def test_two_cores_let_two_threads_work_at_once() -> None:
    loop = EventLoop()
    cores = cores_of(loop, 2)
    first, first_log = recorder(loop, cores, 10)
    second, second_log = recorder(loop, cores, 10)
    first.put("a")
    second.put("x")
    loop.run()
    assert (first_log, second_log) == ([(0, ["a"], 10)], [(0, ["x"], 10)])


def test_a_thread_may_wait_for_a_core_that_is_free() -> None:
    loop = EventLoop()
    cores = cores_of(loop, 2, delay_ns=4)
    first, first_log = recorder(loop, cores, 10)
    second, second_log = recorder(loop, cores, 10)
    third, third_log = recorder(loop, cores, 10)
    first.put("a")
    second.put("x")
    third.put("y")
    loop.run()
    assert (first_log, second_log) == ([(0, ["a"], 10)], [(4, ["x"], 14)])
    assert third_log == [(10, ["y"], 20)]


def test_the_delays_are_drawn_from_a_seed() -> None:
    def begun(seed: int) -> list[int]:
        loop = EventLoop()
        cores = Cores(loop, 2, [1, 2, 3, 4], seed)
        busy, _ = recorder(loop, cores, 1000)
        other, log = recorder(loop, cores, 1)
        busy.put("a")
        for time_ns in range(0, 500, 10):
            loop.at(time_ns, lambda: other.put("x"))
        loop.run()
        return [start for start, _, _ in log]

    assert begun(1) == begun(1)
    assert begun(1) != begun(2)


def test_a_message_takes_a_hop_when_no_core_is_busy_and_longer_when_all_are() -> None:
    loop, seen = EventLoop(), []
    cores = cores_of(loop, 1)

    def work(messages: list[Any], now: int) -> tuple[int, Action]:
        seen.append((now, *messages))
        return 1000 if messages == ["busy"] else 0, lambda: None

    sender, receiver = Process(loop, cores, work, hop_ns=120), Process(loop, cores, work, hop_ns=120)
    sender.send(receiver, ["over the ring"])
    sender.send_directly(receiver, "through the kernel")
    loop.run()
    assert seen == [(30, "through the kernel"), (120, "over the ring")]
    sender.main.put("busy")
    sender.send(receiver, ["late"])
    loop.run()
    assert seen[2:] == [(120, "busy"), (1180, "late")]
