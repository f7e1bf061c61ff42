"""The real model under the real scheduler: however the work is cut and mixed, the tokens stay the same (float32)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.control_messages import RunnerReady
from ipc.messages import LENGTH, Admit, Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.model_files import LocalModel
from model_proc.torch_runner import TorchRunner
from tests.in_process import Outcome, generate

MAX_TOKENS = 12
GREEDY = Sampling(temperature=0.0, max_tokens=MAX_TOKENS)
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "1 2 3 4 5 6 7",
    "Water boils at",
    "Der schnelle braune Fuchs springt",
    "Q: What is 12 times 12?\nA:",
    "Das Wetter in Berlin ist heute",
    "😀😃😄 emoji are",
    "日本の首都は",
    "<|im_start|>user\nName three fruits.<|im_end|>\n<|im_start|>assistant\n",
    "import numpy as np\n\ndef softmax(x):",
    "SELECT name, age FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "In the beginning",
    "To be, or not to be, that is",
    "Dear Sir or Madam,\n\n",
    "{\"name\": \"Alice\", \"age\":",
    "La capitale de l'Italie est",
    "a",
]  # fmt: skip


@dataclass
class Model:
    runner: TorchRunner
    ready: RunnerReady
    prompts: list[list[int]]
    folder: str
    tokenizer: Tokenizer

    def greedy(self, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        outcomes, _ = generate(self.runner, self.ready, prompts, [GREEDY] * len(prompts), **options)
        return [outcome.token_ids for outcome in outcomes]


@pytest.fixture(scope="module")
def model(embedded_model: LocalModel) -> Iterator[Model]:
    # One thread: two on a busy machine of two cores wait for each other at every matrix product.
    memory = {"kv_cache_memory_bytes": 1 << 29, "max_num_seqs": 32}
    options = complete({"dtype": "float32", "device": "cpu", "num_threads": 1, **memory})
    config = section(ModelConfig, options)
    files = describe(embedded_model, config)
    runner = TorchRunner(config, files, lambda *_: None)
    ready = runner.load()
    tokenizer = Tokenizer.from_file(str(embedded_model.tokenizer_folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    threads = torch.get_num_threads()
    yield Model(runner, ready, prompts, files.folder, tokenizer)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def batched(model: Model) -> list[list[int]]:
    """All prompts together, the way that everything else is compared with."""
    return model.greedy(model.prompts)


def test_equals_transformers_generate(model: Model, batched: list[list[int]]) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    for prompt, tokens in zip(model.prompts, batched, strict=True):
        ids = torch.tensor([prompt])
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS)
        assert out[0, len(prompt) :].tolist() == tokens


def test_batched_equals_alone(model: Model, batched: list[list[int]]) -> None:
    assert [model.greedy([prompt])[0] for prompt in model.prompts] == batched


def test_chunked_equals_whole(model: Model, batched: list[list[int]]) -> None:
    assert model.greedy(model.prompts, max_num_batched_tokens=7) == batched


def test_cache_on_equals_off(model: Model, batched: list[list[int]]) -> None:
    assert model.greedy(model.prompts, enable_prefix_caching=False) == batched
    prefix = model.prompts[13]
    extended = [prefix + prompt for prompt in model.prompts[:4]]
    # One after the other, so that each finds the prefix that the first one computed.
    outcomes, scheduler = generate(
        model.runner, model.ready, extended, [GREEDY] * 4, max_num_seqs=1, max_num_batched_tokens=len(prefix) + 20
    )
    assert scheduler.residents.prefix_hits > 0
    assert [outcome.token_ids for outcome in outcomes] == model.greedy(extended, enable_prefix_caching=False)


def test_depth_one_equals_two(model: Model, batched: list[list[int]]) -> None:
    assert model.greedy(model.prompts, pipeline_depth=1) == batched


def test_preempted_equals_not(model: Model, batched: list[list[int]]) -> None:
    needed = max(len(prompt) for prompt in model.prompts) + MAX_TOKENS
    outcomes, scheduler = generate(
        model.runner, model.ready, model.prompts, [GREEDY] * len(PROMPTS), num_blocks=-(-needed // 16) + 2
    )
    assert scheduler.planner.preemptions > 0
    assert [outcome.token_ids for outcome in outcomes] == batched


def test_a_seeded_request_is_the_same_alone_and_in_any_batch(model: Model) -> None:
    kinds = [
        Sampling(temperature=0.9, seed=11, max_tokens=16),
        Sampling(temperature=1.0, top_p=0.9, seed=12, max_tokens=16),
        Sampling(temperature=0.7, top_k=20, seed=13, max_tokens=16, repetition_penalty=1.2),
        Sampling(temperature=1.2, min_p=0.05, seed=14, max_tokens=16, frequency_penalty=0.5),
        Sampling(temperature=0.0, max_tokens=16, presence_penalty=1.0),
    ]
    prompts = [model.prompts[2]] * len(kinds)
    together = _tokens(generate(model.runner, model.ready, prompts, kinds)[0])
    for index, params in enumerate(kinds):
        alone = _tokens(generate(model.runner, model.ready, prompts[:1], [params], enable_prefix_caching=False)[0])
        assert alone == [together[index]]
    preempted, scheduler = generate(
        model.runner, model.ready, prompts, kinds, num_blocks=6, enable_prefix_caching=False
    )
    assert scheduler.planner.preemptions > 0
    assert _tokens(preempted) == together


def test_logprobs_equal_log_softmax_of_transformers(model: Model) -> None:
    params = replace(GREEDY, logprobs=3, max_tokens=8)
    prompts = model.prompts[:5]
    outcomes, _ = generate(model.runner, model.ready, prompts, [params] * 5)
    reference = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + outcome.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(dim=-1)
        assert outcome.reason == LENGTH
        for row, entries in enumerate(outcome.logprobs):
            assert entries[0][0] == outcome.token_ids[row]
            assert [token for token, _ in entries[1:]] == expected[row].topk(3).indices.tolist()
            for token, value in entries:
                assert value == pytest.approx(float(expected[row, token]), abs=1e-3)


def test_a_failing_forward_fails_that_step_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = model.runner._compute
    calls = iter(range(100))

    def fail_once(inputs: Any) -> torch.Tensor:
        if next(calls) == 1:
            raise RuntimeError("out of luck")
        return original(inputs)

    monkeypatch.setattr(model.runner, "_compute", fail_once)
    # A budget of one prompt a step: the second step holds the second prompt and the first one's decode.
    outcomes, scheduler = generate(
        model.runner, model.ready, model.prompts[:3], [GREEDY] * 3, max_num_batched_tokens=5, pipeline_depth=1
    )
    failed = [outcome for outcome in outcomes if outcome.refusal is not None]
    assert 1 <= len(failed) < 3
    assert all(outcome.refusal is not None and outcome.refusal.status == 500 for outcome in failed)
    assert scheduler.residents.pool.num_in_use == 0


def test_a_row_that_cannot_be_sampled_fails_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get what they would have got, their penalties and biases applied once."""
    original = model.runner._sampler._threshold

    def refuse_seven(probs: torch.Tensor, sampling: list[Sampling]) -> torch.Tensor:
        if any(params.top_k == 7 for params in sampling):
            raise ValueError("seven is right out")
        return original(probs, sampling)

    draw = Sampling(temperature=0.8, top_k=40, seed=5, max_tokens=MAX_TOKENS)
    others = [
        GREEDY,
        replace(draw, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=2),
        replace(draw, bias_ids=Ids("i", [28, 30]), bias_values=[3.0, 3.0]),
        replace(draw, min_tokens=4, logprobs=0),
    ]
    expected, _ = generate(model.runner, model.ready, model.prompts[:4], others)
    monkeypatch.setattr(model.runner._sampler, "_threshold", refuse_seven)
    bad = replace(draw, top_k=7)
    outcomes, scheduler = generate(model.runner, model.ready, [*model.prompts[:4], model.prompts[5]], [*others, bad])
    assert _tokens(outcomes[:4]) == _tokens(expected)
    for one, other in zip(outcomes[:4], expected, strict=True):
        assert [len(rows) for rows in one.logprobs] == [len(rows) for rows in other.logprobs]
    assert outcomes[4].refusal is not None
    assert "the sampling of this request failed: ValueError" in outcomes[4].refusal.message
    assert scheduler.residents.pool.num_in_use == 0


def test_a_sequence_that_cannot_be_admitted_fails_alone(
    model: Model, batched: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.runner._sampler.admit

    def refuse_seven(admit: Admit) -> None:
        if admit.sampling.top_k == 7:
            raise ValueError("seven is right out")
        original(admit)

    monkeypatch.setattr(model.runner._sampler, "admit", refuse_seven)
    kinds = [GREEDY, replace(GREEDY, top_k=7), GREEDY]
    # In chunks of 7, so that the step it fails in does not sample it.
    outcomes, scheduler = generate(model.runner, model.ready, model.prompts[:3], kinds, max_num_batched_tokens=7)
    assert _tokens(outcomes[::2]) == batched[:3:2]
    assert outcomes[1].refusal is not None
    assert "cannot be set up: ValueError" in outcomes[1].refusal.message
    assert scheduler.residents.pool.num_in_use == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()])
def test_a_step_without_memory_is_made_smaller(
    error: Exception, model: Model, batched: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.runner._forward

    def run_out(inputs: Any) -> Any:
        if len(inputs.token_ids) > 24:
            raise error
        return original(inputs)

    monkeypatch.setattr(model.runner, "_forward", run_out)
    outcomes, scheduler = generate(model.runner, model.ready, model.prompts, [GREEDY] * len(PROMPTS))
    assert [outcome.token_ids for outcome in outcomes] == batched
    assert scheduler.planner.preemptions > 0


def _tokens(outcomes: list[Outcome]) -> list[list[int]]:
    return [outcome.token_ids for outcome in outcomes]
