"""The mock runner under a virtual clock: what it samples, when its steps begin and end, and in which order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.messages import LENGTH, STOP, Admit, Plan, Result, Sampling
from ipc.mock_vocabulary import SILENT_ID, WORDS, decode, encode
from ipc.options import complete
from ipc.process import FatalError
from model_proc.mock import MockRunner, describe_mock
from model_proc.mock_cost import Work, load_profile
from tests.in_process import generate

MS = 1_000_000
TEXT = "".join(WORDS)


class Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def make(clock: Clock, **options: Any) -> MockRunner:
    config = section(ModelConfig, complete({"model": "mock", **options}))
    return MockRunner(config, describe_mock(config), clock)


def admit(slot: int, length: int, num_computed: int = 0, num_output: int = 0, logprobs: int = -1) -> Admit:
    ids = Ids("i", [300] * length)
    return Admit(slot, slot, ids, length - num_output, num_computed, [], Sampling(logprobs=logprobs))


def plan(step: int, rows: dict[int, int], admits: list[Admit] | None = None, drop: list[int] | None = None) -> Plan:
    """`rows` says how many tokens of each slot are computed."""
    return Plan(step, drop or [], admits or [], list(rows), list(rows.values()), [0] * len(rows), [])


def in_turn(runner: MockRunner, clock: Clock) -> list[Result]:
    """The results of all that is in flight, with the clock set to each one's end."""
    results = []
    while (due := runner.next_done_ns) is not None:
        clock.now = due - 1
        assert not runner.is_done()
        clock.now = due
        assert runner.is_done()
        results.append(runner.collect())
        assert results[-1].finished_ns == due
    assert not runner.is_done()
    return results


def fixed(folder: Path, prefill_tokens_per_ms: int = 10, decode_ms: int = 2) -> str:
    """A profile without chance: a prefill costs a millisecond for every full so many tokens."""
    path = folder / "fixed.toml"
    path.write_text(
        f"[prefill]\ntokens_per_ms = {prefill_tokens_per_ms}\n[decode]\nrandom_ms = [{decode_ms}, {decode_ms}]\n"
    )
    return str(path)


class TestSampling:
    def test_the_answer_is_the_fixed_text(self) -> None:
        runner = make(Clock())
        runner.launch(plan(0, {4: 10}, [admit(4, 10)]))
        first = runner.collect()
        assert (first.slots, first.token_ids.tolist()) == ([4], [1])
        runner.launch(plan(1, {4: 1}))
        assert decode(runner.collect().token_ids) == WORDS[1]

    def test_only_the_last_chunk_of_a_prefill_samples(self) -> None:
        runner = make(Clock())
        runner.launch(plan(0, {0: 5, 1: 3}, [admit(0, 10), admit(1, 3)]))
        assert runner.collect().slots == [1]
        runner.launch(plan(1, {1: 1, 0: 5}))
        result = runner.collect()
        assert (result.slots, result.token_ids.tolist()) == ([1, 0], [2, 1])

    def test_a_preempted_sequence_goes_on_where_it_was(self) -> None:
        runner = make(Clock(), mock_profile="seed")
        preempted = admit(0, 8, num_output=3)
        preempted.token_ids[5:] = Ids("i", [SILENT_ID, 1, 2])
        cached = admit(1, 8, num_output=3, num_computed=7)  # had no silent token, because its prompt was cached
        cached.token_ids[5:] = Ids("i", [1, 2, 3])
        runner.launch(plan(0, {0: 8, 1: 1, 2: 8}, [preempted, cached, admit(2, 8)]))
        assert runner.collect().token_ids.tolist() == [3, 4, SILENT_ID]

    def test_a_prompt_that_is_cached_but_for_its_last_token_has_no_prefill(self) -> None:
        runner = make(clock := Clock(), mock_profile="seed")
        runner.launch(plan(0, {0: 1}, [admit(0, 8, num_computed=7)]))
        [cached] = in_turn(runner, clock)
        assert cached.token_ids.tolist() == [1]
        assert cached.finished_ns <= 20 * MS
        started = clock.now
        runner.launch(plan(1, {1: 1}, [admit(1, 1)]))  # a prompt of one token, and nothing cached
        [cold] = in_turn(runner, clock)
        assert cold.token_ids.tolist() == [SILENT_ID]
        assert cold.finished_ns - started >= 10 * MS

    def test_a_slot_that_was_given_back_begins_anew(self) -> None:
        runner = make(Clock())
        runner.launch(plan(0, {0: 4}, [admit(0, 4, logprobs=2)]))
        assert runner.collect().logprobs is not None
        runner.launch(plan(1, {0: 2}, [admit(0, 6, num_computed=4)], drop=[0, 7]))
        result = runner.collect()
        assert (result.slots, result.token_ids.tolist(), result.logprobs) == ([0], [1], None)

    def test_logprobs_of_those_that_ask(self) -> None:
        runner = make(Clock())
        runner.launch(plan(0, {0: 4, 1: 4, 2: 2}, [admit(0, 4), admit(1, 4, logprobs=0), admit(2, 4, logprobs=5)]))
        logprobs = runner.collect().logprobs
        assert logprobs is not None
        assert (logprobs.counts, logprobs.ids.tolist(), logprobs.values) == ([0, 1], [1], [0.0])

    @pytest.mark.parametrize("profile", ["instant", "linear"])
    def test_71_tokens_and_the_first_comes_from_the_prefill(self, profile: str) -> None:
        runner = make(Clock(), mock_profile=profile)
        [outcome], _ = generate(runner, runner.load(), [list(encode("hello"))], [Sampling(max_tokens=128)])
        assert (decode(outcome.token_ids), len(outcome.token_ids), outcome.reason) == (TEXT, 71, STOP)

    def test_the_seed_says_71_words_after_a_token_without_text(self) -> None:
        runner = make(Clock(), mock_profile="seed")
        [outcome], _ = generate(runner, runner.load(), [list(encode("hello"))], [Sampling(max_tokens=128)])
        assert decode(outcome.token_ids[:1]) == ""
        assert [decode([token]) for token in outcome.token_ids[1:]] == list(WORDS)
        assert outcome.reason == STOP

    def test_without_an_end_the_text_repeats(self) -> None:
        runner = make(Clock(), mock_profile="seed")
        params = Sampling(max_tokens=150, ignore_eos=True)
        [outcome], _ = generate(runner, runner.load(), [list(encode("hello"))], [params])
        assert decode(outcome.token_ids) == TEXT * 2 + "".join(WORDS[:7])
        assert (len(outcome.token_ids), outcome.reason) == (150, LENGTH)


class TestTime:
    def test_a_step_takes_what_the_profile_says(self) -> None:
        clock = Clock()
        runner = make(clock, mock_profile="seed")
        clock.now = 5 * MS
        runner.launch(plan(3, {0: 147, 1: 20, 2: 1}, [admit(0, 147), admit(1, 300, 100), admit(2, 5, 4)]))
        seed = load_profile("seed")
        duration = seed.duration_ns(3, Work(decodes=1, prefills=[147, 20], tokens=168, kv_tokens=147 + 120 + 5))
        [result] = in_turn(runner, clock)
        assert (result.started_ns, result.finished_ns) == (5 * MS, 5 * MS + duration)

    def test_context_is_what_is_computed_once_the_step_has_run(self, tmp_path: Path) -> None:
        (tmp_path / "kv.toml").write_text("[step]\nper_kv_token_ms = 1\nper_token_ms = 1000")
        clock = Clock()
        runner = make(clock, mock_profile=str(tmp_path / "kv.toml"))
        runner.launch(plan(0, {0: 10, 1: 6}, [admit(0, 30), admit(1, 16, num_computed=10)]))
        assert runner.collect().finished_ns == (16_000 + 10 + 16) * MS
        runner.launch(plan(1, {0: 20, 1: 1}))
        assert in_turn(runner, clock)[0].finished_ns == (16_000 + 26 + 21_000 + 30 + 17) * MS

    def test_the_same_plans_take_the_same_time(self) -> None:
        def run() -> list[tuple[int, int]]:
            clock = Clock()
            runner = make(clock, mock_profile="seed", mock_lanes=2)
            for step in range(40):
                runner.launch(plan(step, {step: 3 + step}, [admit(step, 3 + step)]))
            return [(result.step, result.finished_ns) for result in in_turn(runner, clock)]

        assert run() == run()

    def test_one_lane_works_on_one_step_behind_the_other(self, tmp_path: Path) -> None:
        clock = Clock()
        runner = make(clock, mock_profile=fixed(tmp_path))
        assert runner.load().lanes == 1
        runner.launch(plan(0, {0: 100}, [admit(0, 100)]))
        runner.launch(plan(1, {1: 20}, [admit(1, 20)]))
        assert runner.in_flight == 2
        results = in_turn(runner, clock)
        assert [(r.step, r.started_ns // MS, r.finished_ns // MS) for r in results] == [(0, 0, 10), (1, 10, 12)]
        clock.now = 50 * MS
        runner.launch(plan(2, {0: 1}))
        assert [(r.started_ns // MS, r.finished_ns // MS) for r in in_turn(runner, clock)] == [(50, 52)]

    def test_steps_that_take_no_time_come_out_in_order(self) -> None:
        clock = Clock()
        runner = make(clock)
        for step in range(20):
            runner.launch(plan(step, {step: 5}, [admit(step, 5)]))
        assert runner.is_done()
        assert [runner.collect().step for _ in range(20)] == list(range(20))

    def test_lanes_overlap_and_results_come_as_steps_end(self, tmp_path: Path) -> None:
        clock = Clock()
        runner = make(clock, mock_profile=fixed(tmp_path), mock_lanes=2)
        assert runner.load().lanes == 2
        for step, tokens in enumerate((100, 20, 30, 10, 40)):
            runner.launch(plan(step, {step: tokens}, [admit(step, tokens)]))
        results = in_turn(runner, clock)
        times = [(r.step, r.started_ns // MS, r.finished_ns // MS) for r in results]
        assert times == [(1, 0, 2), (2, 2, 5), (3, 5, 6), (0, 0, 10), (4, 6, 10)]

    def test_a_lane_that_is_free_takes_the_next_step_at_once(self, tmp_path: Path) -> None:
        clock = Clock()
        runner = make(clock, mock_profile=fixed(tmp_path), mock_lanes=3)
        runner.launch(plan(0, {0: 100}, [admit(0, 100)]))
        clock.now = 4 * MS
        runner.launch(plan(1, {1: 20}, [admit(1, 20)]))
        assert [(r.step, r.started_ns // MS, r.finished_ns // MS) for r in in_turn(runner, clock)] == [
            (1, 4, 6),
            (0, 0, 10),
        ]

    def test_as_many_lanes_as_steps_make_them_independent(self) -> None:
        clock = Clock()
        runner = make(clock, mock_profile="seed", mock_lanes=50)
        for step in range(50):
            runner.launch(plan(step, {step: 3}, [admit(step, 3)]))
        assert all(r.started_ns == 0 and 10 * MS <= r.finished_ns <= 30 * MS for r in in_turn(runner, clock))


def test_an_unknown_profile() -> None:
    with pytest.raises(FatalError, match="instant, linear, seed"):
        make(Clock(), mock_profile="nothing")


def test_the_mock_needs_neither_torch_nor_numpy() -> None:
    script = "import sys, model_proc.mock; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[]"
