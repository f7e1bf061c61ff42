"""Two model processes that share a model (Gloo, on the CPU), through the whole ring."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import psutil

from ipc.messages import Sampling
from quintet import LLM, SamplingParams
from tests.in_process import generate
from tests.model_proc.small_models import SHAPE, VOCAB_SIZE, write_model
from tests.model_proc.test_native_models import load

WORDS = {"".join(letters) + "c" for letters in product("ab", repeat=3)}
PROMPTS = [[(7 * index + length) % VOCAB_SIZE for index in range(length)] for length in (3, 20, 33)]


def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    folder = write_model("qwen3", tmp_path, **SHAPE)
    sampling = [Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)] * len(PROMPTS)
    expected = [outcome.token_ids for outcome in generate(*load(folder), PROMPTS, sampling)[0]]
    options = {"dtype": "float32", "device": "cpu", "num_gpu_blocks_override": 40, "max_num_seqs": 8, "num_threads": 1}
    with LLM(str(folder), tensor_parallel_size=2, **options) as llm:
        titles = {" ".join(child.cmdline()).strip() for child in psutil.Process().children()}
        assert {"quintet: model", "quintet: model 1"} <= titles
        params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        for _ in range(2):  # the second time from the prefix cache
            results = llm.generate(PROMPTS, params, show_progress=False)
            assert [result.token_ids for result in results] == expected
        # The first rank alone follows the grammar; the others hear from it.
        chosen = SamplingParams(structured_outputs={"regex": "[ab]{3}c"}, max_tokens=8, seed=1)
        assert {result.text for result in llm.generate(PROMPTS, chosen, show_progress=False)} <= WORDS
