"""Models of many families give the tokens of `transformers` `generate`, on the CPU and on a GPU where there is one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ipc.config import ModelConfig, section
from ipc.messages import Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.torch_runner import TorchRunner
from tests.in_process import generate
from tests.model_proc.small_models import FAMILIES, VOCAB_SIZE, save

MAX_TOKENS = 12
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="runs where there is a GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(family: str, device: str, tmp_path: Path) -> None:
    folder = save(family, tmp_path / family)
    rng = random.Random(3)
    prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in (1, 5, 16, 17, 33, 40)]
    options = {"dtype": "float32", "device": device, "num_gpu_blocks_override": 40, "max_num_seqs": 8}
    config = section(ModelConfig, complete(options))
    runner = TorchRunner(config, describe(resolve(str(folder), tmp_path, lambda *_: None), config), lambda *_: None)
    ready = runner.load()
    sampling = [Sampling(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)] * len(prompts)
    whole, _ = generate(runner, ready, prompts, sampling)
    chunked, _ = generate(runner, ready, prompts, sampling, max_num_batched_tokens=9)
    # Half as much memory as they want together.
    preempted, scheduler = generate(
        runner, ready, prompts[2:4] * 2, sampling[:4], num_blocks=6, enable_prefix_caching=False
    )
    assert scheduler.planner.preemptions > 0
    tokens = [outcome.token_ids for outcome in preempted]
    assert tokens[:2] == tokens[2:] == [outcome.token_ids for outcome in whole[2:4]]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference.generation_config.eos_token_id = None
    for prompt, one, other in zip(prompts, whole, chunked, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        expected = reference.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS)
        assert one.token_ids == expected[0, len(prompt) :].tolist()
        assert other.token_ids == one.token_ids
