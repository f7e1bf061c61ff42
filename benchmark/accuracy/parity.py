"""Whether a server computes what `transformers` computes: greedy tokens, and the log-likelihood of every token.

The server continues each text greedily and says how likely each of its tokens was. The reference continues the same
token ids, and is then shown the server's own tokens: so the likelihoods are compared place by place even where the two
continuations part. Where they do, the gap between the reference's two best candidates tells a rounding from a mistake.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.connection_pool import ConnectionPool


class ParityError(RuntimeError):
    """The comparison cannot be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a server makes of one prompt."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]  # of each token
    prompt_logprobs: list[float] | None  # of each prompt token after the first; None when the server cannot tell


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt, here and there. `gap` is in nats."""

    same_tokens: int  # how many tokens are the same before the first that is not
    tokens: int
    gap: float | None  # between the reference's two best candidates, where it chose otherwise
    logprob_differences: list[float]  # server less reference, of every token that the server chose
    prompt_differences: list[float]  # of every token of the prompt, where the server tells

    @property
    def same(self) -> bool:
        return self.same_tokens == self.tokens


# -- the server --------------------------------------------------------------------------------------------------------


async def continuations(
    pool: ConnectionPool, model: str, texts: Sequence[str], max_tokens: int, concurrency: int
) -> list[Continuation]:
    """What the server makes of each text, so many at a time. Raises ParityError and OSError."""
    turn = asyncio.Semaphore(concurrency)

    async def one(text: str) -> Continuation:
        async with turn:
            return await _continuation(pool, model, text, max_tokens)

    return await asyncio.gather(*(one(text) for text in texts))


async def _continuation(pool: ConnectionPool, model: str, text: str, max_tokens: int) -> Continuation:
    prompt_ids = (await _post(pool, "/tokenize", {"model": model, "prompt": text}))["tokens"]
    body = {"model": model, "prompt": prompt_ids, "temperature": 0, "logprobs": 1, "max_tokens": max_tokens}
    [choice] = (await _post(pool, "/v1/completions", {**body, "ignore_eos": True, "return_token_ids": True}))["choices"]
    status, echoed = await pool.ask("POST", "/v1/completions", {**body, "echo": True, "max_tokens": 1})
    prompt_logprobs = None
    if status == 200:  # a server that cannot do it says so
        prompt_logprobs = echoed["choices"][0]["logprobs"]["token_logprobs"][1 : len(prompt_ids)]
    return Continuation(prompt_ids, choice["token_ids"], choice["logprobs"]["token_logprobs"], prompt_logprobs)


async def _post(pool: ConnectionPool, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await pool.ask("POST", path, body)
    if status != 200:
        raise ParityError(f"{path} answers with {status}: {str(answer)[:200]}")
    return dict(answer)


# -- the reference -----------------------------------------------------------------------------------------------------


class Reference:
    """A model of `transformers` in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds config.json and the weights. Raises OSError and ValueError."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging as transformers_logging

        self._torch = torch
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # the benchmark has one of its own
        try:
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
        # `generate` looks here for what it is not given: no penalties, no end of sequence.
        self._model.generation_config = GenerationConfig()

    def greedy(self, prompt_ids: Sequence[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """So many tokens, whatever they are, and the gap to the second best candidate at each, in nats."""
        from transformers import GenerationConfig

        prompt = self._torch.tensor([list(prompt_ids)])
        plain = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
        )
        made = self._model.generate(prompt, attention_mask=self._torch.ones_like(prompt), generation_config=plain)
        best = self._torch.cat(made.logits).float().topk(2).values
        return made.sequences[0, len(prompt_ids) :].tolist(), (best[:, 0] - best[:, 1]).tolist()

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The log-likelihood of every token after the first, in nats."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([list(token_ids)])
            rows = self._model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            return [float(value) for value in rows.gather(1, ids[0, 1:, None])[:, 0]]


def compare(reference: Reference, got: Continuation) -> Compared:
    """One prompt's continuation beside the reference's."""
    ids, gaps = reference.greedy(got.prompt_ids, len(got.token_ids))
    same = same_beginning(ids, got.token_ids)
    expected = reference.logprobs([*got.prompt_ids, *got.token_ids])
    first = len(got.prompt_ids) - 1  # where the likelihoods of the continuation begin
    return Compared(
        same_tokens=same,
        tokens=len(got.token_ids),
        gap=gaps[same] if same < len(got.token_ids) else None,
        logprob_differences=_differences(got.logprobs, expected[first:]),
        prompt_differences=_differences(got.prompt_logprobs or [], expected[: len(got.prompt_logprobs or [])]),
    )


def same_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def summary(compared: Sequence[Compared]) -> dict[str, Any]:
    """What all prompts amount to. A perplexity's ratio is that of the server to the reference."""
    differences = [value for one in compared for value in one.logprob_differences]
    prompt = [value for one in compared for value in one.prompt_differences]
    return {
        "prompts": len(compared),
        "same": sum(one.same for one in compared),
        "tokens": sum(one.tokens for one in compared),
        "logprob_difference_mean": _mean_size(differences),
        "logprob_difference_max": max(map(abs, differences), default=None),
        "gaps_where_they_part": [one.gap for one in compared if one.gap is not None],
        "prompt_tokens_compared": len(prompt),
        "prompt_logprob_difference_max": max(map(abs, prompt), default=None),
        "prompt_perplexity_ratio": math.exp(-sum(prompt) / len(prompt)) if prompt else None,
        "each": [asdict(one) for one in compared],
    }


def _differences(got: Sequence[float], expected: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(got, expected, strict=True)]


def _mean_size(values: Sequence[float]) -> float | None:
    return sum(map(abs, values)) / len(values) if values else None
