"""Who is let in: a request that cannot fit, or that the queue has no room for, is refused as it arrives."""

from __future__ import annotations

from ipc.config import SchedulerConfig
from ipc.control_messages import RunnerReady
from ipc.messages import Refusal, Submit
from scheduler_proc.drain_rate import DrainRate
from scheduler_proc.tally import Tally

QUEUE_IN_CACHES = 16  # tokens that may wait when nothing else is said, in sizes of the KV cache


class Admission:
    """The bounds of the queue. What waits is memory, and time that a client may not have."""

    def __init__(self, config: SchedulerConfig, runner: RunnerReady, tally: Tally) -> None:
        self.rate = DrainRate()
        self._tally = tally
        capacity = runner.num_blocks * runner.block_size
        self._most_requests = config.max_num_queued_reqs
        self._most_tokens = config.max_num_queued_tokens or QUEUE_IN_CACHES * capacity
        self._longest = min(runner.max_model_len, capacity)

    def refusal(self, submit: Submit, queued: int, queued_tokens: int, now: int) -> Refusal | None:
        """Why a request cannot be taken in, if so; `queued` sequences, with `queued_tokens` in all, wait already."""
        if submit.n > self._most_requests:
            text = f"n: {submit.n} is more than the {self._most_requests} that may wait"
            return Refusal(400, "invalid_request_error", text, "n")
        length = len(submit.token_ids) + submit.sampling.max_tokens
        if length > self._longest:
            text = (
                f"the prompt has {len(submit.token_ids)} tokens and max_tokens is {submit.sampling.max_tokens}: "
                f"together they are over the {self._longest} tokens that fit here"
            )
            return Refusal(400, "invalid_request_error", text, "max_tokens")
        if queued + submit.n > self._most_requests:
            self._tally.queue_full += 1
            return self._full(f"{queued} requests", queued, queued_tokens, now)
        if queued_tokens and queued_tokens + len(submit.token_ids) > self._most_tokens:
            self._tally.tokens_full += 1
            return self._full(f"{queued_tokens} prompt tokens", queued, queued_tokens, now)
        return None

    def _full(self, what: str, queued: int, queued_tokens: int, now: int) -> Refusal:
        text = f"the queue is full: {what} are waiting; try again later"
        retry_after_s = self.rate.retry_after_s(queued, queued_tokens, now)
        return Refusal(429, "overloaded_error", text, retry_after_ms=round(retry_after_s * 1000))
