"""The published workloads are the ones that are measured, and a run through the real processes gives rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import offline
from benchmark.offline import Work, make_work, measure
from benchmark.shapes import QWEN3, SHAPES


@pytest.mark.parametrize(
    ("name", "requests", "tokens_in", "tokens_out"),
    [
        ("single", 1, 128, 512), ("decode64", 64, 8192, 32768), ("prefill", 64, 131072, 64),
        ("mix256", 256, 142827, 133966),
    ],
)  # fmt: skip
def test_named_works(name: str, requests: int, tokens_in: int, tokens_out: int) -> None:
    work = make_work(name)
    assert len(work.prompts) == len(work.max_tokens) == requests
    assert sum(map(len, work.prompts)) == tokens_in
    assert sum(work.max_tokens) == tokens_out


def test_a_file_is_a_work(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"prompts": [[1, 2], [3]], "max_tokens": [4, 5]}')
    assert make_work(str(file)) == Work("mine", [[1, 2], [3]], [4, 5])
    with pytest.raises(SystemExit, match="--work: 'other' is none of"):
        make_work("other")


def test_a_shape_runs_through_the_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    monkeypatch.setitem(SHAPES, "tiny", QWEN3 | tiny | {"intermediate_size": 48, "tie_word_embeddings": True})
    monkeypatch.setattr(offline, "OPTIONS", {"max_model_len": 64, "max_num_seqs": 4, "num_gpu_blocks_override": 64})
    rows, startup = measure("tiny", [Work("mine", [[5, 6, 7], [8]], [4, 6])], 1, {"device": "cpu"})
    assert startup > 0
    assert rows[0]["size"] == "tiny"
    assert rows[0]["out_tok_s"] == pytest.approx(10 / rows[0]["seconds"], rel=0.01)
