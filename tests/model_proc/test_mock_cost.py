"""The formulas of the mock's cost models, against values worked out by hand."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from model_proc.mock_cost import ItemCost, Profile, StepCost, Work, load_profile, random_numbers

MS = 1_000_000
HIGHEST = 2**32 - 1
SEED = load_profile("seed")


@pytest.mark.parametrize(
    ("tokens", "lowest", "highest"),
    [(1, 10, 30), (3, 10, 30), (23, 15, 35), (147, 46, 66), (600, 160, 180), (679, 179, 180), (680, 180, 180)],
)
def test_a_prefill_of_the_seed(tokens: int, lowest: int, highest: int) -> None:
    assert (SEED.prefill.ms(tokens, 0), SEED.prefill.ms(tokens, HIGHEST)) == (lowest, highest)
    reached = {SEED.duration_ns(step, Work(prefills=[tokens], tokens=tokens)) for step in range(600)}
    assert reached == {ms * MS for ms in range(lowest, highest + 1)}


def test_a_decode_of_the_seed() -> None:
    durations = [SEED.duration_ns(step, Work(decodes=1, tokens=1)) for step in range(3200)]
    counts = [durations.count(ms * MS) for ms in range(5, 21)]
    assert sum(counts) == len(durations)
    assert min(counts) >= 140  # 200 expected, deviation 14
    assert max(counts) <= 260


@pytest.mark.parametrize(
    ("decodes", "expected_ms"), [(1, 12.5), (2, 15.16), (4, 17.28), (8, 18.68), (10, 18.99), (32, 19.86), (100, 20.0)]
)
def test_a_step_of_decodes_is_as_slow_as_the_slowest(decodes: int, expected_ms: float) -> None:
    steps = range(4000)
    mean = statistics.fmean(SEED.duration_ns(step, Work(decodes=decodes, tokens=decodes)) for step in steps) / MS
    deviation = 4.61 / len(steps) ** 0.5  # of the mean, where there is one decode; with more it is less
    assert mean == pytest.approx(expected_ms, abs=4 * deviation)


def test_a_step_of_everything_is_as_slow_as_the_slowest() -> None:
    work = Work(decodes=3, prefills=[147, 3], tokens=153, kv_tokens=900)
    for step in range(200):
        numbers = random_numbers(SEED.seed, step, 5)
        decodes = [5 + 16 * number // 2**32 for number in numbers[:3]]
        prefills = [
            max(10, min(180, tokens // 4 + 10 + 21 * number // 2**32))
            for tokens, number in zip((147, 3), numbers[3:], strict=True)
        ]
        assert SEED.duration_ns(step, work) == max(decodes + prefills) * MS


def test_a_linear_step_worked_out_by_hand() -> None:
    profile = Profile(step=StepCost(fixed_ms=1.5, per_token_ms=0.25, per_kv_token_ms=0.001))
    assert profile.duration_ns(7, Work(decodes=2, prefills=[5], tokens=7, kv_tokens=1000)) == 4_250_000


def test_the_slowest_item_comes_on_top_of_the_step() -> None:
    decode = ItemCost(random_ms=(4, 4))
    profile = Profile(step=StepCost(fixed_ms=1.0), prefill=ItemCost(tokens_per_ms=10), decode=decode)
    assert profile.duration_ns(0, Work(decodes=2, tokens=2)) == 5 * MS
    assert profile.duration_ns(0, Work(decodes=2, prefills=[79], tokens=81)) == 8 * MS


def test_an_item_within_its_bounds() -> None:
    item = ItemCost(random_ms=(0, 9), min_ms=2, max_ms=6)
    assert {item.ms(1, number << 24) for number in range(256)} == {2, 3, 4, 5, 6}


def test_instant_takes_no_time() -> None:
    assert load_profile("instant").duration_ns(3, Work(decodes=9, prefills=[500], tokens=509, kv_tokens=9999)) == 0


def test_linear_takes_time_for_tokens_and_context() -> None:
    fitted = load_profile("linear")
    # The one that is shipped saw short contexts, and asks nothing for them.
    profile = replace(fitted, step=replace(fitted.step, per_kv_token_ms=0.001))
    small, large, long = (Work(1, [], 1, 10), Work(1, [100], 101, 110), Work(1, [], 1, 10_000))
    assert 0 < profile.duration_ns(0, small) < profile.duration_ns(0, large)
    assert profile.duration_ns(0, small) < profile.duration_ns(0, long)


def test_numbers_are_a_function_of_seed_and_step_alone() -> None:
    assert random_numbers(1, 0, 2) == (3967700019, 3514500861)
    assert random_numbers(1, 0, 300)[:2] == random_numbers(1, 0, 2)
    different = {random_numbers(seed, step, 4) for seed in (1, 2, 11) for step in (0, 1, 12)}
    assert len(different) == 9
