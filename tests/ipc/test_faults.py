"""Faults on purpose are off unless asked for, and happen where and when they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipc import faults


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    faults.arm("model", "")


def test_nothing_is_armed_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.arm("model")
    assert not faults.armed
    assert not faults.at("step")


def test_only_the_process_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "model:step:raise,tokenizer:prompt:spoil:2")
    faults.arm("gateway")
    assert not faults.armed
    faults.arm("model")
    with pytest.raises(faults.FaultError, match="step"):
        faults.at("step")
    assert not faults.at("prompt")
    faults.arm("tokenizer")
    assert [faults.at("prompt") for _ in range(4)] == [False, True, False, False]


def test_memory_that_is_not_there() -> None:
    faults.arm("model", "model:step:memory")
    with pytest.raises(MemoryError):
        faults.at("step")


@pytest.mark.parametrize("text", ["model:step", "model:step:melt", "model:step:crash:1:2", "model:step:crash:x"])
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="QUINTET_FAULT"):
        faults.arm("model", text)
