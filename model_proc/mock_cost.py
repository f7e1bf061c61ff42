"""What a step of the mock costs: cost models are data, a small .toml file each (`--mock-profile`).

Every profile is the same formula with other numbers; `profiles/seed.toml` explains each of them:

    step = fixed_ms + per_token_ms * tokens + per_kv_token_ms * kv_tokens + its slowest item
    item = max(min_ms, min(max_ms, tokens // tokens_per_ms + a random whole number out of random_ms))

An item is what one sequence computes in the step: a prefill chunk of some tokens, or a decode, which is one token.
"""

from __future__ import annotations

import math
import struct
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from hashlib import shake_128
from pathlib import Path
from typing import Any, TypeVar

from ipc.process import FatalError

PROFILES = Path(__file__).resolve().parent / "profiles"


@dataclass(slots=True)
class Work:
    """What one step computes."""

    decodes: int = 0  # sequences that compute the token that they sampled last
    prefills: list[int] = field(default_factory=list)  # tokens of each prefill chunk
    tokens: int = 0  # of all items together
    kv_tokens: int = 0  # context lengths of its sequences once the step has run, summed


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step costs as a whole."""

    fixed_ms: float = 0.0
    per_token_ms: float = 0.0
    per_kv_token_ms: float = 0.0

    def ms(self, work: Work) -> float:
        return self.fixed_ms + self.per_token_ms * work.tokens + self.per_kv_token_ms * work.kv_tokens


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What one item costs, in whole milliseconds."""

    random_ms: tuple[int, int] = (0, 0)  # both ends included
    tokens_per_ms: int | None = None  # one millisecond for each full so many tokens; None: the length costs nothing
    min_ms: int = 0
    max_ms: int | None = None  # None is no limit

    def ms(self, tokens: int, number: int) -> int:
        """The cost of `tokens` tokens. `number` is random, below 2**32; the cost never falls as it grows."""
        low, high = self.random_ms
        cost = low + ((high - low + 1) * number >> 32)
        if self.tokens_per_ms is not None:
            cost += tokens // self.tokens_per_ms
        if self.max_ms is not None:
            cost = min(cost, self.max_ms)
        return max(cost, self.min_ms)


FREE = ItemCost()


@dataclass(frozen=True, slots=True)
class Profile:
    """One cost model, and whether a prefill emits text."""

    seed: int = 0
    silent_prefill: bool = False  # the token that a prompt's prefill samples has no text: words come with decodes only
    step: StepCost = StepCost()
    prefill: ItemCost = FREE
    decode: ItemCost = FREE

    def duration_ns(self, number: int, work: Work) -> int:
        """How long the step of this number takes: the same number and work take the same time, always."""
        ms = self.step.ms(work)
        if self.prefill != FREE or self.decode != FREE:
            ms += self._slowest_item_ms(number, work)
        return round(ms * 1e6)

    def _slowest_item_ms(self, step: int, work: Work) -> int:
        numbers = random_numbers(self.seed, step, work.decodes + len(work.prefills))
        slowest = 0
        if work.decodes:
            # The largest number makes the slowest decode, so there is no need to look at the others.
            slowest = self.decode.ms(1, max(numbers[: work.decodes]))
        for tokens, number in zip(work.prefills, numbers[work.decodes :], strict=True):
            slowest = max(slowest, self.prefill.ms(tokens, number))
        return slowest


def random_numbers(seed: int, step: int, count: int) -> tuple[int, ...]:
    """`count` numbers below 2**32, a function of (seed, step): the output of SHAKE-128 (FIPS 202) for the two.

    One call makes those of a whole step: in Python, a generator's arithmetic would cost more than the rest of the step.
    """
    return struct.unpack(f"<{count}I", shake_128(b"%d %d" % (seed, step)).digest(4 * count))


# -- files -------------------------------------------------------------------------------------------------------------


def load_profile(name: str) -> Profile:
    """The cost model of `--mock-profile`: one of those in `profiles/`, or a .toml file.

    Raises FatalError with one line that names the file, the key and what may stand there.
    """
    built_in = {path.stem: path for path in sorted(PROFILES.glob("*.toml"))}
    path = Path(name) if name.endswith(".toml") else built_in.get(name)
    if path is None:
        raise FatalError(f"--mock-profile: {name!r} is none of {', '.join(built_in)}, and not a .toml file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return _read(Profile, values, "")
    except OSError as error:
        raise FatalError(f"--mock-profile {path}: {error.strerror}") from None
    except ValueError as error:
        raise FatalError(f"--mock-profile {path}: {error}") from None


Section = TypeVar("Section", Profile, StepCost, ItemCost)


def _read(cls: type[Section], values: Any, place: str) -> Section:
    """A section of a profile from its table; `place` is where that is in the file. Raises ValueError."""
    if type(values) is not dict:
        raise ValueError(f"{place.rstrip('.')}: expected a table, got {values!r}")
    names = [field.name for field in fields(cls)]
    for key in values:
        if key not in names:
            raise ValueError(f"{place}{key}: there is no such key; there are {', '.join(names)}")
    section = cls(**{key: READERS[key](value, place + key) for key, value in values.items()})
    if isinstance(section, ItemCost) and section.max_ms is not None and section.max_ms < section.min_ms:
        raise ValueError(f"{place}max_ms: {section.max_ms} is less than min_ms, which is {section.min_ms}")
    return section


def _whole(value: Any, key: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{key}: expected a whole number that is not negative, got {value!r}")
    return value


def _positive(value: Any, key: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}: expected a whole number of at least 1, got {value!r}")
    return value


def _number(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{key}: expected a number that is not negative, got {value!r}")
    return float(value)


def _flag(value: Any, key: str) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return value


def _range(value: Any, key: str) -> tuple[int, int]:
    if type(value) is not list or len(value) != 2:
        raise ValueError(f"{key}: expected [lowest, highest], got {value!r}")
    low, high = _whole(value[0], key), _whole(value[1], key)
    if low > high:
        raise ValueError(f"{key}: expected [lowest, highest], got {value!r}")
    return low, high


# Every key of a profile file, and how its value is read.
READERS: dict[str, Callable[[Any, str], Any]] = {
    "seed": _whole,
    "silent_prefill": _flag,
    "step": lambda value, key: _read(StepCost, value, f"{key}."),
    "prefill": lambda value, key: _read(ItemCost, value, f"{key}."),
    "decode": lambda value, key: _read(ItemCost, value, f"{key}."),
    "fixed_ms": _number,
    "per_token_ms": _number,
    "per_kv_token_ms": _number,
    "random_ms": _range,
    "tokens_per_ms": _positive,
    "min_ms": _whole,
    "max_ms": _whole,
}
