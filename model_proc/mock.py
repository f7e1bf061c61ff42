"""A runner without a model: it answers every plan at once with the words of a fixed text. It needs no torch."""

from __future__ import annotations

import time
from collections import deque

from ipc import mock_vocabulary
from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.messages import Admit, Logprobs, ModelFiles, Plan, Result, RunnerReady

NUM_BLOCKS = 16384


def describe_mock(config: ModelConfig) -> ModelFiles:
    """The message that introduces the mock: it has no files."""
    return ModelFiles(
        name="mock",
        folder="",
        tokenizer_folder="",
        max_model_len=config.max_model_len or mock_vocabulary.MAX_MODEL_LEN,
        vocab_size=mock_vocabulary.VOCAB_SIZE,
        defaults={},
    )


class Slot:
    """One sequence of the batch: how many tokens it has, and how many of them are computed."""

    __slots__ = ("length", "num_computed", "output_start", "wants_logprobs")

    def __init__(self, admit: Admit) -> None:
        self.length = len(admit.token_ids)
        self.num_computed = admit.num_computed
        self.output_start = admit.output_start
        self.wants_logprobs = admit.sampling.logprobs >= 0


class MockRunner:
    """Samples word `i` of the fixed text as output token `i` of every sequence, with probability one."""

    def __init__(self, config: ModelConfig, files: ModelFiles) -> None:
        self._config = config
        self._files = files
        self._slots: dict[int, Slot] = {}
        self._results: deque[Result] = deque()

    def load(self) -> RunnerReady:
        return RunnerReady(
            num_blocks=self._config.num_gpu_blocks_override or NUM_BLOCKS,
            block_size=self._config.block_size,
            max_model_len=self._files.max_model_len,
            max_num_seqs=self._config.max_num_seqs,
            eos_token_ids=Ids("i", [mock_vocabulary.EOS_ID]),
        )

    def launch(self, plan: Plan) -> None:
        started = time.monotonic_ns()
        for number in plan.drop:
            self._slots.pop(number, None)
        for admit in plan.admit:
            self._slots[admit.slot] = Slot(admit)
        sampled: list[int] = []
        token_ids = Ids("i")
        for number, num_tokens in zip(plan.slots, plan.num_tokens, strict=True):
            slot = self._slots[number]
            slot.num_computed += num_tokens
            if slot.num_computed == slot.length:
                sampled.append(number)
                token_ids.append(mock_vocabulary.answer_id(slot.length - slot.output_start))
                slot.length += 1
        self._results.append(
            Result(
                step=plan.step,
                slots=sampled,
                token_ids=token_ids,
                logprobs=self._logprobs(sampled, token_ids),
                failed=[],
                errors=[],
                started_ns=started,
                finished_ns=time.monotonic_ns(),
            )
        )

    @property
    def in_flight(self) -> int:
        return len(self._results)

    def is_done(self) -> bool:
        return True

    def collect(self) -> Result:
        return self._results.popleft()

    def _logprobs(self, slots: list[int], token_ids: Ids) -> Logprobs | None:
        """Each sampled token was certain: its log-probability is 0, and it has no alternatives."""
        wanted = [self._slots[slot].wants_logprobs for slot in slots]
        if not any(wanted):
            return None
        chosen = Ids("i", [token for token, want in zip(token_ids, wanted, strict=True) if want])
        return Logprobs(counts=[int(want) for want in wanted], ids=chosen, values=[0.0] * len(chosen), pieces=[])
