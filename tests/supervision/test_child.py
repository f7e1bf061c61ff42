"""What the supervisor makes of a process's signs of life, and when it starts a lost one again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.config import RingConfig, SchedulerConfig, section
from ipc.control_messages import Beat
from ipc.options import complete
from quintet import LLM
from supervision import child as child_module
from supervision.child import HEALTHY_S, SILENCE_S, Child, how_it_ended

CONFIG = section(SchedulerConfig, complete({}))
TIMEOUT_S = 300.0


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """A process that has begun at the time 100 and does nothing."""
    monkeypatch.setitem(child_module.PACKAGES, "scheduler", "tests.supervision.sleeper")
    child = Child("scheduler")
    child.start(RingConfig(str(tmp_path), 2, "info"), CONFIG, 100.0)
    yield child
    child.kill()


def pid_of(child: Child) -> int:
    assert child._process is not None
    return child._process.pid


def wait_until_stopped(child: Child) -> None:
    os.waitid(os.P_PID, pid_of(child), os.WSTOPPED | os.WNOWAIT)


def test_silence_alone_is_no_ailment(child: Child) -> None:
    assert child.ailment(100.0 + 1000 * SILENCE_S, TIMEOUT_S) is None


def test_a_stopped_process_is_known_after_its_silence(child: Child) -> None:
    child.on_beat(Beat("scheduler", 1, {}), 105.0)
    os.kill(pid_of(child), signal.SIGSTOP)
    wait_until_stopped(child)
    assert child.ailment(105.0 + SILENCE_S, TIMEOUT_S) is None  # it may go on in time
    ailment = child.ailment(105.1 + SILENCE_S, TIMEOUT_S)
    assert ailment is not None
    assert "stopped" in ailment
    child.kill()
    assert child.pidfd == -1
    assert child.death() is None, "it is buried, and not found dead again"


def test_work_without_progress_is_an_ailment_only_after_the_timeout(child: Child) -> None:
    child.on_ready(110.0)
    child.on_beat(Beat("scheduler", 7, {}, working=True), 110.0)
    for at in range(111, 400):
        child.on_beat(Beat("scheduler", 7, {}, working=True), float(at))
    assert child.ailment(399.0, TIMEOUT_S) is None
    ailment = child.ailment(411.0, TIMEOUT_S)
    assert ailment is not None
    assert "without progress for 301 s" in ailment


def test_progress_and_idleness_are_well(child: Child) -> None:
    child.on_ready(110.0)
    child.on_beat(Beat("scheduler", 7, {}, working=True), 110.0)
    child.on_beat(Beat("scheduler", 8, {}, working=True), 400.0)
    assert child.ailment(500.0, TIMEOUT_S) is None
    child.on_beat(Beat("scheduler", 8, {}, working=False), 690.0)
    child.on_beat(Beat("scheduler", 8, {}, working=True), 691.0)
    assert child.ailment(900.0, TIMEOUT_S) is None


def test_a_start_may_take_as_long_as_it_takes(child: Child) -> None:
    child.on_beat(Beat("scheduler", 0, {}, working=True), 101.0)
    child.on_beat(Beat("scheduler", 0, {}, working=True), 5000.0)
    assert child.ailment(5000.0, TIMEOUT_S) is None
    child.on_ready(5000.0)
    child.on_beat(Beat("scheduler", 0, {}, working=True), 5000.5)
    assert child.ailment(5001.0, TIMEOUT_S) is None


def test_a_death_is_found_once(child: Child) -> None:
    os.kill(pid_of(child), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(child), os.WEXITED | os.WNOWAIT)
    assert child.death() == -signal.SIGKILL
    assert child.death() is None
    assert how_it_ended(-signal.SIGKILL) == "SIGKILL"
    assert how_it_ended(3) == "exit code 3"


def test_losses_in_a_row_are_counted_and_delay_the_restart() -> None:
    child = Child("model")
    delays = []
    for _ in range(8):
        child.lose(1000.0)
        assert child.restart_at is not None
        delays.append(round(child.restart_at - 1000.0, 3))
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    child.on_ready(1000.0)
    child.lose(1000.0 + HEALTHY_S)
    assert child.losses == 9
    child.on_ready(1020.0)
    child.lose(1020.1 + HEALTHY_S)
    assert child.losses == 1


def test_the_offline_api_does_not_pretend_to_restart() -> None:
    with pytest.raises(ValueError, match="restart_limit"):
        LLM("mock", restart_limit=3)


@pytest.mark.parametrize("name", ["gateway_workers", "tokenizer_workers", "detokenizer_workers"])
def test_an_llm_has_one_process_of_each_kind(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: only for a server"):
        LLM("mock", **{name: 2})
