"""llama.cpp's CPU time of a prefill and of decode steps, for `benchmark.cpu_step`: runs in an environment of its own.

    /that/environment/bin/python benchmark/llama_step.py MODEL.gguf 1 140 "1 8 16" 170 20

Arguments: the model, threads, tokens of the prefill, batch sizes, cached tokens of each sequence, steps. Needs the
package llama-cpp-python and nothing of ours. Prints one line of JSON: CPU milliseconds, the median and the least.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import llama_cpp as llama


class Context:
    """A model and its KV cache."""

    def __init__(self, path: str, threads: int, sequences: int, tokens: int) -> None:
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx = sequences * tokens
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama.llama_init_from_model(self._model, params)
        self._batch = llama.llama_batch_init(512, 0, 1)

    def step(self, tokens: list[tuple[int, int]], samples: set[int]) -> float:
        """Compute (sequence, position) pairs; the logits of those indexes are wanted. Returns CPU seconds."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (sequence, position) in enumerate(tokens):
            batch.token[index] = 1000 + (37 * position + sequence) % 9000
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = index in samples
        started = time.process_time()
        if llama.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        return time.process_time() - started

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)


def main() -> None:
    path, threads, prompt, batches, cached, steps = sys.argv[1:]
    sizes, length, count = [int(size) for size in batches.split()], int(cached), int(steps)
    context = Context(path, int(threads), max(sizes), length + count + 8)
    figures: dict[str, Any] = {"prefill": [], "decode": {}}
    for _ in range(4):
        context.clear()
        figures["prefill"].append(context.step([(0, i) for i in range(int(prompt))], {int(prompt) - 1}))
    for size in sizes:
        context.clear()
        for sequence in range(size):
            context.step([(sequence, i) for i in range(length)], set())
        times = [context.step([(s, length + i) for s in range(size)], set(range(size))) for i in range(count)]
        figures["decode"][size] = summary(times[2:])
    figures["prefill"] = summary(figures["prefill"][1:])
    print(json.dumps({"version": llama.__version__, **figures}))


def summary(times: list[float]) -> dict[str, float]:
    return {"median_ms": 1e3 * statistics.median(times), "least_ms": 1e3 * min(times)}


if __name__ == "__main__":
    main()
