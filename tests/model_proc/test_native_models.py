"""Our own decoder against `transformers`: every family and variant that it claims, and what it leaves alone."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ipc.config import ModelConfig, section
from ipc.messages import Sampling
from ipc.options import complete
from ipc.process import FatalError
from model_proc.describe import describe
from model_proc.files.checkpoint import resolve
from model_proc.files.model_files import ModelFilesError
from model_proc.models.decoder import Decoder
from model_proc.models.open import native_settings
from model_proc.models.rope import rope_table
from model_proc.models.settings import FAMILIES
from model_proc.models.transformers_model import TransformersModel
from model_proc.torch_runner import TorchRunner
from tests.in_process import generate
from tests.model_proc.kernel_device import DEVICE, INTERPRETED, needs_triton
from tests.model_proc.small_models import SHAPE, VOCAB_SIZE, write_model

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases, llama3 rope": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama, tied, one KV head": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "ministral": ("ministral", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "qwen2, windows on some": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen2, linear rope": ("qwen2", {"rope_parameters": LINEAR}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0], "rope_parameters": DYNAMIC}),
    "phi3": ("phi3", {"num_key_value_heads": 4}),
}
MAX_TOKENS = 8


def load(folder: Path, **options: Any) -> tuple[TorchRunner, Any]:
    values = {"dtype": "float32", "device": "cpu", "num_gpu_blocks_override": 40, "max_num_seqs": 8, **options}
    config = section(ModelConfig, complete(values))
    files = describe(resolve(str(folder), folder, lambda *_: None, config.load_format != "dummy"), config)
    runner = TorchRunner(config, files, lambda *_: None)
    return runner, runner.load()


def greedy(folder: Path, **options: Any) -> tuple[type, list[list[int]]]:
    runner, ready = load(folder, **options)
    rng = random.Random(3)
    prompts = [[rng.randrange(1, VOCAB_SIZE) for _ in range(length)] for length in (1, 17, 40)]
    sampling = [Sampling(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)] * len(prompts)
    outcomes, _ = generate(runner, ready, prompts, sampling, max_num_batched_tokens=23)
    return type(runner._model), [outcome.token_ids for outcome in outcomes]


def save(folder: Path, family: str, **settings: Any) -> Path:
    return write_model(family, folder, **{**SHAPE, "num_hidden_layers": 4, **settings})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_family_is_tried() -> None:
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, settings = VARIANTS[name]
    folder = save(tmp_path / "model", family, **settings)
    native_kind, native = greedy(folder, model_impl="native")
    other_kind, other = greedy(folder, model_impl="transformers")
    assert (native_kind, other_kind) == (Decoder, TransformersModel)
    assert native == other


@pytest.mark.parametrize("rope", [LINEAR, LLAMA3, YARN, YARN | {"mscale": 0.7, "mscale_all_dim": 0.3}], ids=str)
def test_rope_tables_equal_those_of_transformers(rope: dict[str, Any]) -> None:
    config = AutoConfig.for_model("llama", **{**SHAPE, "rope_parameters": rope})
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    angles = torch.outer(torch.arange(100.0), frequencies)
    expected = torch.cat([angles.cos(), angles.sin()], dim=1) * factor
    assert torch.allclose(rope_table(rope, SHAPE["head_dim"], 100, torch.device("cpu")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"clip_qkv": 3.0}, "config.json sets clip_qkv"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
                              "long_factor": [1.0] * 8, "factor": 1.0, "original_max_position_embeddings": 64}},
         "rope_type is longrope"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "a part of"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_know_runs_on_transformers(
    changes: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path / "model", "llama")
    edit_config(folder, **changes)
    with caplog.at_level(logging.INFO):
        assert native_settings(folder, "auto") is None
    assert reason in caplog.text
    with pytest.raises(ModelFilesError, match=f"--model-impl native: .*{reason}"):
        native_settings(folder, "native")


@needs_triton
@pytest.mark.parametrize("family", ["qwen3"] if INTERPRETED else ["qwen3", "granite", "mistral", "smollm3"])
def test_every_way_to_compute_gives_the_same_tokens(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", family, num_hidden_layers=2)
    device = DEVICE.type
    expected = greedy(folder, device=device, attention_backend="torch")[1]
    ways: list[dict[str, Any]] = [{"attention_backend": "triton"}]
    if not INTERPRETED:
        ways += [
            {"attention_backend": "triton", "enforce_eager": True},
            {"attention_backend": "triton", "cudagraph_capture_sizes": ["2", "3"]},
            {"attention_backend": "triton", "model_impl": "transformers"},
            {"attention_backend": "torch", "model_impl": "transformers"},
        ]
    for way in ways:
        assert greedy(folder, device=device, **way)[1] == expected, way


def test_an_unknown_family_runs_on_transformers(tmp_path: Path) -> None:
    assert native_settings(save(tmp_path / "model", "olmo2"), "auto") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"lacks lm_head\.weight; fetch"),
        (lambda w: w.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight has shape \(3,\), but"),
        (lambda w: w.update({"model.layers.0.mlp.down_proj.bias": torch.ones(64)}), r"down_proj\.bias, which config"),
    ],
)
def test_weights_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=message):
        load(folder, model_impl="native")


def test_sharded_weights_and_bfloat16(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    whole = greedy(folder, dtype="bfloat16")[1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert greedy(folder, dtype="bfloat16")[1] == whole


def test_dummy_weights_need_no_checkpoint_and_repeat(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "qwen3")
    (folder / "model.safetensors").unlink()
    first = greedy(folder, load_format="dummy")
    assert first == greedy(folder, load_format="dummy")
    with pytest.raises(FatalError, match="--load-format dummy works with our own decoder alone"):
        load(folder, load_format="dummy", model_impl="transformers")


def test_triton_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = save(tmp_path / "model", "llama")
    with pytest.raises(FatalError, match="--attention-backend triton: it needs a GPU"):
        load(folder, attention_backend="triton")
