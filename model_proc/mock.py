"""A runner without a model: it answers with the words of a fixed text, and each step takes as long as a profile says.

It computes nothing and waits for nothing: `launch` works out the step's tokens and when its lane will be done with it,
and the clock, which the caller gives, tells when that is. So the very same runner serves in real time and in a
simulation. It needs no torch.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from ipc import faults
from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.control_messages import ModelFiles, RunnerReady
from ipc.messages import Admit, Logprobs, Plan, Prepare, Prepared, Result
from ipc.mock_vocabulary import EOS_ID, MAX_MODEL_LEN, SILENT_ID, VOCAB_SIZE, answer_id
from model_proc.mock_cost import Work, load_profile

NUM_BLOCKS = 16384


def describe_mock(config: ModelConfig) -> ModelFiles:
    """The message that introduces the mock: it has no files."""
    return ModelFiles(
        name="mock",
        folder="",
        tokenizer_folder="",
        max_model_len=config.max_model_len or MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        defaults={},
        reads_prompts=False,
    )


class Slot:
    """One sequence of the batch: how far it is computed, and what of its known tokens is still to be."""

    __slots__ = ("answer_start", "num_computed", "num_left", "prompt_only")

    def __init__(self, admit: Admit, silent_prefill: bool) -> None:
        self.num_computed = admit.num_computed
        self.prompt_only = admit.sampling.prompt_only
        missing = len(admit.token_ids) - admit.num_computed
        # One token behind a context that is there: that is what a decode computes, so there is no prefill.
        is_decode = missing == 1 and admit.num_computed > 0 and not self.prompt_only
        self.num_left = 0 if is_decode else missing
        output = admit.token_ids[admit.output_start : admit.output_start + 1]
        was_silent = output[0] == SILENT_ID if output else self.num_left > 0
        self.answer_start = admit.output_start + (silent_prefill and was_silent)


class MockRunner:
    """Samples the words of the fixed text, one after the other, with probability one.

    It has `mock_lanes` lanes: a step begins when a lane is free, in the order of launch, and keeps that lane for what
    `mock_profile` says that it costs. Results come out in the order in which steps end.

    `clock` tells the time in nanoseconds. Raises FatalError when the profile cannot be read.
    """

    def __init__(self, config: ModelConfig, files: ModelFiles, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._config = config
        self._files = files
        self._clock = clock
        self._profile = load_profile(config.mock_profile)
        self._slots: dict[int, Slot] = {}
        self._with_logprobs: set[int] = set()  # those slots whose sequences want them
        self._lanes = [0] * config.mock_lanes  # heap: when each lane is free, ns
        self._in_flight: list[tuple[int, int, Result]] = []  # heap: when it ends (ns), its step, what it sampled

    def load(self) -> RunnerReady:
        return RunnerReady(
            num_blocks=self._config.num_gpu_blocks_override or NUM_BLOCKS,
            block_size=self._config.block_size,
            max_model_len=self._files.max_model_len,
            max_num_seqs=self._config.max_num_seqs,
            eos_token_ids=Ids("i", [EOS_ID]),
            lanes=self._config.mock_lanes,
        )

    def reset(self) -> None:
        self._slots.clear()
        self._with_logprobs.clear()
        self._in_flight.clear()

    def prepare(self, message: Prepare, answer: Callable[[Prepared], None]) -> None:
        """Its words follow no grammar. The tokenizer refuses requests that want one, so none should get here."""
        answer(Prepared(message.grammar, "it is a mock, whose words follow no grammar"))

    def launch(self, plan: Plan) -> None:
        # The clock is read first: the time that this takes is part of the step, not on top of it.
        started = max(self._clock(), self._lanes[0])
        result = Result(plan.step, [], Ids("i"), None, [], [], started, 0)
        work = self._advance(plan, result)
        if faults.armed and result.slots and faults.at("logits"):
            result.failed, result.errors = [result.slots.pop(0)], ["the model's output is not a number"]
            result.token_ids.pop(0)
        result.logprobs = self._logprobs(result)
        result.finished_ns = started + self._profile.duration_ns(plan.step, work)
        heapq.heapreplace(self._lanes, result.finished_ns)
        heapq.heappush(self._in_flight, (result.finished_ns, plan.step, result))

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def next_done_ns(self) -> int | None:
        """When the step that ends first will be done, on the runner's clock; None when nothing is in flight."""
        return self._in_flight[0][0] if self._in_flight else None

    def is_done(self) -> bool:
        """Whether the step that ends first is over."""
        return bool(self._in_flight) and self._in_flight[0][0] <= self._clock()

    def collect(self) -> Result:
        """The result of the step that ends first. It does not wait until that is over: ask `is_done` before."""
        return heapq.heappop(self._in_flight)[2]

    def _advance(self, plan: Plan, result: Result) -> Work:
        """Let the plan take effect on the slots and fill in what it samples. Returns what there is to compute."""
        for number in plan.drop:
            self._slots.pop(number, None)
            self._with_logprobs.discard(number)
        for admit in plan.admit:
            self._slots[admit.slot] = Slot(admit, self._profile.silent_prefill)
            if admit.sampling.logprobs >= 0:
                self._with_logprobs.add(admit.slot)
        slots, sampled = self._slots, result.slots
        token_ids: list[int] = []
        prefills: list[int] = []
        kv_tokens = 0
        # This loop runs once for every sequence and step.
        for number, num_tokens in zip(plan.slots, plan.num_tokens, strict=True):
            slot = slots[number]
            slot.num_computed = context = slot.num_computed + num_tokens
            kv_tokens += context
            if slot.num_left:
                prefills.append(num_tokens)
                slot.num_left -= num_tokens
                if slot.num_left or slot.prompt_only:
                    continue
            sampled.append(number)
            token_ids.append(answer_id(context - slot.answer_start))
        result.token_ids = Ids("i", token_ids)
        return Work(len(plan.slots) - len(prefills), prefills, sum(plan.num_tokens), kv_tokens)

    def _logprobs(self, result: Result) -> Logprobs | None:
        """Each sampled token was certain: its log-probability is 0, and it has no alternatives."""
        wanted = [slot in self._with_logprobs for slot in result.slots] if self._with_logprobs else []
        if not any(wanted):
            return None
        chosen = Ids("i", [token for token, want in zip(result.token_ids, wanted, strict=True) if want])
        return Logprobs(counts=[int(want) for want in wanted], ids=chosen, values=[0.0] * len(chosen), pieces=[])
