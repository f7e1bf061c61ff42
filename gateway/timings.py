"""How long a request took and where its time went: the `timings` of every answer, and vLLM's `metrics` beside them.

`timings`, in milliseconds. A token's moment is when the result of its step reached the scheduler.

    field              from                               to
    tokenize_ms        read by the gateway                its prompt is token ids
    queue_ms           taken in by the scheduler          its first step is planned
    batch_wait_ms      its first step is planned          the runner begins that step
    prefill_ms         its first step is planned          first token
    ttft_ms            read by the gateway                first token
    decode_ms          first token                        last token
    total_ms           read by the gateway                last token

    field              what it is
    execution_ms       the runner's time for all steps that ended while the sequence was in the running batch
    batch_size         how many sequences those steps had, on average
    batch_id           the number of the step that sampled the first token
    tokens_per_second  tokens after the very first one, by decode_ms
    prompt_tokens, cached_tokens, completion_tokens
                       as in `usage`: a prompt counts once, whatever n is; all choices' tokens count

An answer with several choices or prompts has several sequences. Then tokenize_ms to ttft_ms and batch_id are those of
the sequence whose first token came first, execution_ms and batch_size those of the one that ended last; decode_ms,
total_ms and tokens_per_second end with the last token of all.

`metrics`, as vLLM defines them (its documentation, "Per-Request Metrics"); null, as there, with several sequences.

    queue_time_ms           queue_ms
    time_to_first_token_ms  prefill_ms: it runs from the first step's planning, not from the request's arrival
    generation_time_ms      decode_ms
    mean_itl_ms             generation_time_ms by the tokens after the first; null for one token
    tokens_per_second       all tokens by the time from the first step's planning to the last token

What has not happened, or cannot be divided, is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipc.messages import Head, Tail

NS_PER_MS = 1e6
NS_PER_S = 1e9

End = tuple[Head, Tail]  # of one sequence


def timings(ends: Sequence[End], prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The `timings` object of a request whose sequences have all ended."""
    head, tail = min(ends, key=lambda end: end[1].first_token_ns)
    _, last = max(ends, key=lambda end: end[1].finished_ns)
    decode_ms = span_ms(tail.first_token_ns, last.finished_ns)
    return {
        "tokenize_ms": span_ms(head.received_ns, head.tokenized_ns),
        "queue_ms": span_ms(head.queued_ns, head.scheduled_ns),
        "batch_wait_ms": span_ms(head.scheduled_ns, tail.started_ns),
        "prefill_ms": span_ms(head.scheduled_ns, tail.first_token_ns),
        "ttft_ms": span_ms(head.received_ns, tail.first_token_ns),
        "decode_ms": decode_ms,
        "total_ms": span_ms(head.received_ns, last.finished_ns),
        "execution_ms": round(last.execution_ns / NS_PER_MS, 3),
        "tokens_per_second": _per_second(completion_tokens - 1, decode_ms),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "completion_tokens": completion_tokens,
        "batch_id": tail.first_step if tail.first_step >= 0 else None,
        "batch_size": round(last.batch_size, 2),
    }


def vllm_metrics(ends: Sequence[End]) -> dict[str, Any] | None:
    """The `metrics` object of a request whose sequences have all ended."""
    if len(ends) != 1:
        return None
    [(head, tail)] = ends
    generation_ms = span_ms(tail.first_token_ns, tail.finished_ns)
    more = tail.completion_tokens - 1
    return {
        "queue_time_ms": span_ms(head.queued_ns, head.scheduled_ns),
        "time_to_first_token_ms": span_ms(head.scheduled_ns, tail.first_token_ns),
        "generation_time_ms": generation_ms,
        "mean_itl_ms": None if generation_ms is None or more < 1 else round(generation_ms / more, 3),
        "tokens_per_second": _per_second(tail.completion_tokens, span_ms(head.scheduled_ns, tail.finished_ns)),
    }


def span_ms(start_ns: int, end_ns: int) -> float | None:
    """The time between two moments; None when one of them has not come (is 0)."""
    return round((end_ns - start_ns) / NS_PER_MS, 3) if start_ns and end_ns else None


def _per_second(num_tokens: int, time_ms: float | None) -> float | None:
    return round(num_tokens / time_ms * 1000, 3) if time_ms and num_tokens > 0 else None
