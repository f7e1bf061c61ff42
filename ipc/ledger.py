"""The figures of all processes over their restarts, and over all gateways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ipc.control_messages import Beat, Counted


class Ledger:
    """The last figures of each process; what its predecessors had counted is kept.

    A process that is started again counts from 0. Prometheus takes a fall for a reset, but not in a sum over several
    processes: there it would be a leap. So the sums here never fall while this gateway lives.
    """

    def __init__(self) -> None:
        self._now: dict[str, Mapping[str, Any]] = {}
        self._before: dict[str, dict[str, Any]] = {}  # what earlier processes of the same name had counted

    def update(self, beat: Beat) -> None:
        """Take in a process's figures."""
        last = self._now.get(beat.process)
        if last is not None and _birth(last) != _birth(beat.stats):
            self._before[beat.process] = add(self._before.get(beat.process, {}), last)
        self._now[beat.process] = beat.stats

    def export(self) -> Counted:
        """All of it, for another one to go on from."""
        return Counted({name: dict(figures) for name, figures in self._now.items()}, dict(self._before))

    def go_on_from(self, counted: Counted) -> None:
        """Take over what another one has gathered, before anything is gathered here."""
        self._now, self._before = dict(counted.now), dict(counted.before)

    def of(self, process: str) -> Mapping[str, Any]:
        """The figures of a process as it reported them; empty before the first report."""
        return self._now.get(process, {})

    def counted(self, process: str) -> Mapping[str, Any]:
        """The same with all numbers summed up over its restarts: for what is a count."""
        before = self._before.get(process)
        return self.of(process) if before is None else add(before, self.of(process))

    @property
    def processes(self) -> list[str]:
        """Whoever has reported."""
        return sorted(self._now)


def add(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data plus plain data of the same shape: numbers and lists of numbers are summed, mappings gone through.

    `bounds` are the same on both sides and stay; what only one side has stays; rows with names in front (routes) are
    matched by those names.
    """
    total = dict(one)
    for name, value in other.items():
        mine = total.get(name)
        if mine is None or name == "bounds":
            total[name] = value
        elif isinstance(value, Mapping):
            total[name] = add(mine, value)
        elif isinstance(value, list):
            total[name] = _add_lists(mine, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            total[name] = mine + value
        else:
            total[name] = value
    return total


def add_all(figures: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several."""
    total: dict[str, Any] = {}
    for each in figures:
        total = add(total, each)
    return total


def _add_lists(one: list[Any], other: list[Any]) -> list[Any]:
    if other and isinstance(other[0], list):
        rows = {tuple(row[:-1]): row[-1] for row in one}
        for row in other:
            rows[tuple(row[:-1])] = rows.get(tuple(row[:-1]), 0) + row[-1]
        return [[*names, count] for names, count in rows.items()]
    if len(one) != len(other) or not all(isinstance(value, int | float) for value in (*one, *other)):
        return other  # no counts
    return [mine + theirs for mine, theirs in zip(one, other, strict=True)]


def _birth(figures: Mapping[str, Any]) -> Any:
    """What tells a process from its successor, and a scheduler from the next one in the same process."""
    process = figures.get("process")
    return process.get("started_ns") if isinstance(process, Mapping) else None, figures.get("runs")
