"""Loading: the right weights in the right dtype, nothing missing in silence, nothing unsupported accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from model_proc.files.model_files import LocalModel, ModelFilesError
from model_proc.weights import check_supported, load_config, load_model
from tests.model_proc.gguf_samples import silent

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
Weights = dict[str, torch.Tensor]


def load(folder: Path, dtype: torch.dtype = torch.float32, attention: str = "eager") -> torch.nn.Module:
    return load_model(folder, dtype, CPU, attention, silent)


def save(folder: Path, config: PretrainedConfig, **options: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small random model with an output layer of its own."""
    return save(tmp_path / "model", LlamaConfig(**SHAPE, tie_word_embeddings=False))


def edit_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_wanted_dtype_and_rotary_frequencies_stay_float32(folder: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype)
    stored = load_file(folder / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(stored)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, stored[name].to(dtype)), name
        assert parameter.device == CPU
        assert not parameter.requires_grad
    assert not model.training
    frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
    assert torch.equal(frequencies, 1 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8))


def test_the_model_computes_what_transformers_computes(folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.inference_mode():
        assert torch.equal(load(folder)(ids).logits, reference(ids).logits)


def test_the_registered_attention_is_called(folder: Path) -> None:
    layers = []

    def attention(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **_: Any) -> tuple[Any, None]:
        layers.append((module.layer_idx, tuple(query.shape)))
        return query.transpose(1, 2), None

    AttentionInterface.register("test_attention", attention)
    model = load(folder, attention="test_attention")
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    assert layers == [(0, (1, 4, 3, 8)), (1, (1, 4, 3, 8))]


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    model: Any = load(save(tmp_path / "tied", Qwen3Config(**SHAPE, tie_word_embeddings=True)))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_sharded_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "sharded", LlamaConfig(**SHAPE, tie_word_embeddings=False), max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert len(list(load(folder).parameters())) == 21


def test_the_embedded_model_is_mapped_not_copied(embedded_model: LocalModel) -> None:
    model: Any = load(embedded_model.folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    mapped = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if ".safetens" in line
    ]
    address = model.model.embed_tokens.weight.data_ptr()
    assert any(int(begin, 16) <= address < int(end, 16) for begin, end in mapped)


def test_loading_says_nothing_and_reports_its_progress(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_weights(folder, lambda weights: weights.update({"draft.weight": torch.zeros(2)}))
    verbosity = transformers.logging.get_verbosity()
    reports: list[tuple[str, int, int]] = []
    load_model(folder, torch.float32, CPU, "eager", lambda *report: reports.append(report))
    size = (folder / "model.safetensors").stat().st_size
    assert reports == [("load", 0, size), ("load", size, size)]
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity
    assert transformers.logging.is_progress_bar_enabled()


# -- weights that do not fit -------------------------------------------------------------------------------------------


def rename(old: str, new: str) -> Callable[[Weights], object]:
    return lambda weights: weights.update({new: weights.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"lacks lm_head\.weight; fetch the model again"),
        (lambda w: [w.pop(name) for name in list(w) if ".mlp." in name], "and 3 more weights"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(16)}),
            r"model\.norm\.weight has shape \(16,\), but config\.json means \(32,\)",
        ),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
            r"has model\.layers\.0\.self_attn\.q_proj\.bias, which config\.json has no place for",
        ),
    ],
)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[Weights], object], message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(ModelFilesError, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


def test_old_buffers_and_weights_of_other_modules_do_not_matter(folder: Path) -> None:
    extra = {"model.rotary_emb.inv_freq": torch.ones(4), "mtp.layers.0.weight": torch.ones(4)}
    edit_weights(folder, lambda weights: weights.update(extra))
    assert len(list(load(folder).parameters())) == 21


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelFilesError, match="cannot load the weights in "):
        load(folder)


# -- models that are not served ----------------------------------------------------------------------------------------


def test_an_unknown_model_type_is_refused_and_its_code_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    with pytest.raises(ModelFilesError, match="has the unknown model_type evil; transformers") as refusal:
        load_config(folder)
    assert "\n" not in str(refusal.value)


def test_a_config_that_makes_no_sense_is_refused(folder: Path) -> None:
    edit_config(folder, hidden_size="wide")
    with pytest.raises(ModelFilesError, match=r"config\.json cannot be read"):
        load_config(folder)


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("t5", {}, "it has an encoder"),
    ("bart", {}, "it has an encoder"),
    ("bert", {}, "it has an encoder"),
    ("qwen2_vl", {}, "it has parts beside text (text_config, vision_config)"),
    ("gemma3", {}, "it has parts beside text (text_config, vision_config)"),
    ("vit", {}, "it is no language model"),
    ("mamba", {}, "it has layers without a plain KV cache"),
    ("rwkv", {}, "it has layers without a plain KV cache (a recurrent state)"),
    ("qwen3_next", {}, "it has layers without a plain KV cache (linear_attention)"),
    ("bloom", {}, "the attention of BloomForCausalLM cannot be replaced"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "those of a LlamaForSequenceClassification"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "stored quantized"),
]


@pytest.mark.parametrize(("kind", "options", "message"), UNSUPPORTED)
def test_unsupported_models_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFilesError) as refusal:
        check_supported(transformers.AutoConfig.for_model(kind, **options))
    assert str(refusal.value).startswith(f"the model type {kind} is not supported: ")
    assert message in str(refusal.value)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "phi3", "gpt2", "olmo2"])
def test_decoders_are_supported(kind: str) -> None:
    check_supported(transformers.AutoConfig.for_model(kind))


def test_loading_refuses_unsupported_models_before_reading_weights(folder: Path) -> None:
    edit_config(folder, architectures=["LlamaForTokenClassification"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFilesError, match="not of a language model"):
        load(folder)
