"""GGUF conversion: values, names and tokenizers against the `gguf` package and `transformers`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from model_proc.files.checkpoint import find_embedded_gguf, read_config
from model_proc.files.model_files import ModelFilesError
from model_proc.gguf.convert import convert_gguf
from tests.model_proc import gguf_samples as samples
from tests.model_proc.gguf_samples import convert, silent

ARCHITECTURES = ("llama", "qwen2", "qwen3")
MATRIX_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_1")


# -- the embedded model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded model, converted afresh by the code under test."""
    folder = tmp_path_factory.mktemp("embedded")
    convert_gguf(find_embedded_gguf(), folder, silent)
    yield folder
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def reference() -> gguf.GGUFReader:
    """The embedded file as the `gguf` package reads it; that takes seconds."""
    return gguf.GGUFReader(find_embedded_gguf())


def test_embedded_weights_are_exactly_those_of_the_gguf_package(embedded: Path, reference: gguf.GGUFReader) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    with safe_open(embedded / "model.safetensors", framework="np") as converted:
        ours = {}
        for name in converted.keys():  # noqa: SIM118 (not a dict)
            stem, suffix = name.rsplit(".", 1)
            ours[f"{names.get_name(stem)}.{suffix}"] = converted.get_tensor(name)
    assert set(ours) == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        values = ours[tensor.name]
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            values = samples.in_gguf_row_order(values, 9 if ".attn_q." in tensor.name else 3)
        assert values.dtype == np.float32
        assert np.array_equal(values, gguf.dequantize(tensor.data, tensor.tensor_type)), tensor.name


TEXTS = (  # without fractions and other numbers that are no digits: transformers does not set them apart
    "The capital of France is Paris, isn't it?",
    "def f(x):\n    return x ** 2  # squared\n\n\n\tif x >= 10:\n\t\tpass\r\n",
    "  leading, trailing and    inner   spaces  ",
    "你好，世界。こんにちは世界！안녕하세요",  # noqa: RUF001
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 ﬁ \u200b\u00a0 naïve café",
    "1234567890 3.14159 0x1F 12:34",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\x00\x01\x7f\ufffd",
    "",
)


@pytest.fixture(scope="module")
def tokenizers(embedded: Path, reference: gguf.GGUFReader) -> tuple[Any, Any]:
    """The converted tokenizer, and the one that `transformers` makes of the same file."""
    source = find_embedded_gguf()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda _: reference)
        made = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return transformers.AutoTokenizer.from_pretrained(embedded), made


@pytest.mark.parametrize("text", TEXTS)
def test_embedded_tokenizer_gives_the_text_back_and_agrees_with_transformers(
    tokenizers: tuple[Any, Any], text: str
) -> None:
    ours, reference = tokenizers
    ids = ours.encode(text)
    assert ours.decode(ids, skip_special_tokens=False) == text
    assert ids == reference.encode(text)


def test_embedded_tokenizer_is_set_up_like_the_original(tokenizers: tuple[Any, Any], embedded: Path) -> None:
    ours, reference = tokenizers
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert sorted(ours.added_tokens_decoder) == list(range(17))
    assert all(token.special for token in ours.added_tokens_decoder.values())
    assert ours.tokenize("1984 ½") == ["1", "9", "8", "4", "\u0120", "Â½"]  # transformers joins the last two
    messages = [{"role": "user", "content": "Hello"}]
    prompt = ours.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert ours.decode(ours.encode(prompt), skip_special_tokens=True).count("<|") == 0
    assert json.loads((embedded / "generation_config.json").read_text())["eos_token_id"] == [2]


# -- tiny models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix_type", MATRIX_TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_equal_those_that_transformers_reads(tmp_path: Path, architecture: str, matrix_type: str) -> None:
    kind = GGMLQuantizationType[matrix_type]
    weights = samples.tensors(architecture)
    source = samples.write_gguf(tmp_path / "tiny.gguf", architecture, samples.metadata(architecture), weights, kind)
    folder = tmp_path / "model"
    folder.mkdir()
    convert_gguf(source, folder, silent)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    expected = load_gguf_checkpoint(source, return_tensors=True, model_to_load=skeleton)["tensors"]
    ours = load_file(folder / "model.safetensors")
    assert set(ours) == set(skeleton.state_dict()) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(ours[name].float(), tensor), name
    kept = {"F16": torch.float16, "BF16": torch.bfloat16}.get(matrix_type, torch.float32)
    assert ours["model.embed_tokens.weight"].dtype == kept
    assert ours["model.norm.weight"].dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_comes_back_from_gguf_as_it_was(tmp_path: Path, architecture: str, tied: bool) -> None:
    """Weights -> GGUF as llama.cpp writes it -> our folder -> the same weights, and `transformers` can run it."""
    weights = samples.tensors(architecture, tied=tied)
    stored = dict(weights)
    if architecture == "llama":
        for layer in range(samples.LAYERS):
            for name, heads in (("attn_q", samples.HEADS), ("attn_k", samples.KV_HEADS)):
                key = f"blk.{layer}.{name}.weight"
                stored[key] = samples.in_gguf_row_order(weights[key], heads)
    folder = convert(tmp_path, architecture, samples.metadata(architecture), stored)
    ours = load_file(folder / "model.safetensors")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        source = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}[name]
        expected = torch.from_numpy(weights[f"blk.1.{source}.weight"])
        assert torch.equal(ours[f"model.layers.1.self_attn.{name}.weight"], expected)
    assert ("lm_head.weight" in ours) is not tied
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert type(model).__name__ == read_config(folder)["architectures"][0]
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, len(samples.TOKENS))
    assert logits.isfinite().all()


def test_biases_of_the_llama_family_are_permuted_with_their_rows(tmp_path: Path) -> None:
    weights = samples.tensors("llama", bias=True)
    folder = convert(tmp_path, "llama", samples.metadata("llama"), weights)
    ours = load_file(folder / "model.safetensors")
    config = read_config(folder)
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)
    for source, target, heads in (("attn_q", "q_proj", samples.HEADS), ("attn_k", "k_proj", samples.KV_HEADS)):
        bias = ours[f"model.layers.0.self_attn.{target}.bias"].numpy()
        assert np.array_equal(samples.in_gguf_row_order(bias, heads), weights[f"blk.0.{source}.bias"])
    assert np.array_equal(ours["model.layers.0.mlp.up_proj.bias"].numpy(), weights["blk.0.ffn_up.bias"])


def test_config_says_what_the_metadata_say(tmp_path: Path) -> None:
    folder = convert(tmp_path, "qwen3", samples.metadata("qwen3"), samples.tensors("qwen3"))
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen3"
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 96, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 32)
    assert (config.vocab_size, config.max_position_embeddings) == (len(samples.TOKENS), 128)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (samples.BEGIN, samples.END, None)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [samples.END, samples.TURN]
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_a_sliding_window_makes_it_mistral(tmp_path: Path) -> None:
    values = samples.metadata("llama") | {"llama.attention.sliding_window": 32}
    config = transformers.AutoConfig.from_pretrained(convert(tmp_path, "llama", values, samples.tensors("llama")))
    assert (config.model_type, config.sliding_window, config.architectures) == ("mistral", 32, ["MistralForCausalLM"])


LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (LINEAR, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
        (
            YARN,
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    values = samples.metadata("qwen2") | {f"qwen2.{key}": value for key, value in keys.items()}
    folder = convert(tmp_path, "qwen2", values, samples.tensors("qwen2"))
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.rope_parameters == {"rope_theta": 10000.0, **expected}


def test_llama3_rope_scaling_is_found_again(tmp_path: Path) -> None:
    """GGUF keeps only the divisors of the frequencies; those that `transformers` computes must be the same."""
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters=parameters, max_position_embeddings=131072
    )
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = 1 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    weights = samples.tensors("llama") | {"rope_freqs.weight": (unscaled / scaled).float().numpy()}
    values = samples.metadata("llama") | {"llama.rope.freq_base": 500000.0}
    folder = convert(tmp_path, "llama", values, weights)
    assert read_config(folder)["rope_parameters"] == parameters
    wrong = weights | {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}
    with pytest.raises(ModelFilesError, match="its rope_freqs tensor is not the scaling of Llama 3"):
        convert_gguf(samples.write_gguf(tmp_path / "wrong.gguf", "llama", values, wrong), folder, silent)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_byte_level_tokenizer(tmp_path: Path) -> None:
    folder = convert(tmp_path, "llama", samples.metadata("llama"), samples.tensors("llama"))
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.tokenize("hello world<|end|>hello") == ["hello", "\u0120wor", "ld", "<|end|>", "hello"]
    assert ours.tokenize("12") == ["1", "2"]
    assert ours.encode("hello") == [samples.TOKENS.index("hello")]
    assert ours.decode(ours.encode("hello<|end|>"), skip_special_tokens=True) == "hello"


def test_llama3_vocabulary_begins_with_bos_and_takes_whole_words(tmp_path: Path) -> None:
    values = samples.metadata("llama") | {"tokenizer.ggml.pre": "llama-bpe"}
    values["tokenizer.ggml.merges"] = samples.MERGES[:-1]  # no merges lead to "ld" any more
    folder = convert(tmp_path, "llama", values, samples.tensors("llama"))
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.convert_ids_to_tokens(ours.encode("ld")) == ["<|begin|>", "ld"]
    assert ours.convert_ids_to_tokens(ours.encode("xld", add_special_tokens=False)) == ["x", "l", "d"]


def test_user_defined_tokens_match_but_are_not_special(tmp_path: Path) -> None:
    values = samples.metadata("llama")
    values["tokenizer.ggml.token_type"] = [*samples.TOKEN_TYPES[:-3], 3, 4, 3]
    folder = convert(tmp_path, "llama", values, samples.tensors("llama"))
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.tokenize("a<|turn|>") == ["a", "<|turn|>"]
    assert ours.decode(ours.encode("a<|turn|><|end|>"), skip_special_tokens=True) == "a<|turn|>"


SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("ab", -1.0, 1), ("bc", -2.0, 1), (f"{SPACE}a", -3.0, 1), ("abc", -4.0, 1),
    (SPACE, -5.0, 1), ("a", -6.0, 1), ("b", -7.0, 1), ("c", -8.0, 1),
]  # fmt: skip


def sentencepiece_model() -> tuple[samples.Metadata, samples.Tensors]:
    values = {key: value for key, value in samples.metadata("llama").items() if not key.startswith("tokenizer.")}
    values["tokenizer.ggml.model"] = "llama"
    for column, key in enumerate(("tokens", "scores", "token_type")):
        values[f"tokenizer.ggml.{key}"] = [piece[column] for piece in PIECES]
    weights = samples.tensors("llama", tied=True)
    weights["token_embd.weight"] = np.zeros((len(PIECES), samples.HIDDEN), np.float32)
    return values, weights


def test_sentencepiece_tokenizer(tmp_path: Path) -> None:
    folder = convert(tmp_path, "llama", *sentencepiece_model())
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    # The best score merges first: "ab" before "_a"; then "ab" + "c".
    assert ours.tokenize("abc") == [SPACE, "abc"]
    assert ours.tokenize("a") == [f"{SPACE}a"]
    assert ours.tokenize("cbc") == [SPACE, "c", "bc"]
    assert ours.convert_ids_to_tokens(ours.encode("é")) == ["<s>", SPACE, "<0xC3>", "<0xA9>"]
    for text in ("abc", "  abc a", "日本 😀\n", "a b  c "):
        assert ours.decode(ours.encode(text), skip_special_tokens=True) == text
    assert ours.tokenize("a</s>a") == [f"{SPACE}a", "</s>", f"{SPACE}a"]
    config = read_config(folder)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)  # SentencePiece's ids where the file names none


def test_sentencepiece_without_space_prefix(tmp_path: Path) -> None:
    values, weights = sentencepiece_model()
    values |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    ours = transformers.AutoTokenizer.from_pretrained(convert(tmp_path, "llama", values, weights))
    assert ours.convert_ids_to_tokens(ours.encode("abc a")) == ["abc", f"{SPACE}a"]
    assert ours.decode(ours.encode(" abc")) == " abc"


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    source = samples.write_gguf(tmp_path / "tiny.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    convert_gguf(source, tmp_path, lambda *report: reports.append(report))
    total = sum(tensor.nbytes for tensor in samples.tensors("llama").values())
    assert reports[0] == ("convert", 0, total)
    assert reports[-1] == ("convert", total, total)
    assert reports == sorted(reports)
