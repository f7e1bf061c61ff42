"""The embedded model through the whole server computes what `transformers` computes: the accuracy benchmark checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmark.accuracy.__main__ import main
from benchmark.server import Server


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other at every product, and long where other tests' servers are at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_tokens_and_likelihoods_are_those_of_transformers(real_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    argv = ["--dataset=parity", "--num-samples=4", "--max-tokens=16", f"--base-url={real_server.url}", f"--json={path}"]
    assert main(argv) == 0
    found = json.loads(path.read_text())
    assert (found["model"], found["same"], found["prompts"], found["tokens"]) == ("smol", 4, 4, 64)
    assert found["logprob_difference_max"] < 1e-3
    assert found["prompt_tokens_compared"] > 20
    assert found["prompt_logprob_difference_max"] < 1e-3
    assert abs(found["prompt_perplexity_ratio"] - 1) < 1e-4
