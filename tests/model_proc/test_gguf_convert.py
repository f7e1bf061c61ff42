"""GGUF conversion: values and names against the `gguf` package and `transformers`, and every refusal."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
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

from model_proc.checkpoint import find_embedded_gguf
from model_proc.gguf_convert import convert_gguf
from model_proc.gguf_file import read_gguf
from model_proc.model_files import ModelFilesError
from tests.model_proc import gguf_samples as samples

ARCHITECTURES = ("llama", "qwen2", "qwen3")
MATRIX_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_1")


def silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def convert(folder: Path, architecture: str, values: samples.Metadata, weights: samples.Tensors) -> Path:
    """Write a GGUF file and convert it; returns the model folder."""
    target = folder / "model"
    target.mkdir()
    convert_gguf(samples.write_gguf(folder / "tiny.gguf", architecture, values, weights), target, silent)
    return target


def read_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    assert isinstance(config, dict)
    return config


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


# -- refusals ----------------------------------------------------------------------------------------------------------

Change = Callable[[samples.Metadata, samples.Tensors], object]
ONES = np.ones(samples.HIDDEN, np.float32)

REFUSALS: list[tuple[str, Change]] = [
    ("llama.expert_count|it is a mixture of experts", lambda v, w: v.update({"llama.expert_count": 8})),
    ("attention.value_length differs", lambda v, w: v.update({"llama.attention.value_length": 8})),
    ("rope.dimension_count is not 16", lambda v, w: v.update({"llama.rope.dimension_count": 8})),
    ("its attention is not causal", lambda v, w: v.update({"llama.attention.causal": False})),
    ("rope.scaling.type is longrope", lambda v, w: v.update({"llama.rope.scaling.type": "longrope"})),
    ("unknown key llama.logit_scale", lambda v, w: v.update({"llama.logit_scale": 2.0})),
    ("no key llama.block_count", lambda v, w: v.pop("llama.block_count")),
    ("llama.block_count is 0", lambda v, w: v.update({"llama.block_count": 0})),
    ("llama.block_count is a str", lambda v, w: v.update({"llama.block_count": "two"})),
    ("one of 3 parts; join them", lambda v, w: v.update({"split.count": 3})),
    ("no tensor blk.1.attn_v.weight", lambda v, w: w.pop("blk.1.attn_v.weight")),
    ("no tensor token_embd.weight", lambda v, w: w.pop("token_embd.weight")),
    ("no place for tensor blk.0.attn_sub_norm.weight", lambda v, w: w.update({"blk.0.attn_sub_norm.weight": ONES})),
    ("attn_norm.weight has shape", lambda v, w: w.update({"blk.0.attn_norm.weight": ONES[:32]})),
    ("tokenizer bert, which is not supported", lambda v, w: v.update({"tokenizer.ggml.model": "bert"})),
    ("pre-tokenizer chatglm-bpe, which is", lambda v, w: v.update({"tokenizer.ggml.pre": "chatglm-bpe"})),
    ("pre-tokenizer none", lambda v, w: v.pop("tokenizer.ggml.pre")),
    ("names no end-of-sequence token", lambda v, w: v.pop("tokenizer.ggml.eos_token_id")),
    ("special token 9999, but", lambda v, w: v.update({"tokenizer.ggml.padding_token_id": 9999})),
    ("token types", lambda v, w: v.update({"tokenizer.ggml.token_type": [1, 1]})),
    ("the same token twice", lambda v, w: v.update({"tokenizer.ggml.tokens": ["a"] * len(samples.TOKENS)})),
    ("no merges", lambda v, w: v.pop("tokenizer.ggml.merges")),
    ("inconsistent vocabulary", lambda v, w: v.update({"tokenizer.ggml.merges": ["zz zz"]})),
    ("inconsistent vocabulary", lambda v, w: v.update({"tokenizer.ggml.merges": ["a b c"]})),
    ("eos_token_id is a str", lambda v, w: v.update({"tokenizer.ggml.eos_token_id": "end"})),
    (
        "wants a bos token around each text",
        lambda v, w: (v.update({"tokenizer.ggml.add_bos_token": True}), v.pop("tokenizer.ggml.bos_token_id")),
    ),
]


@pytest.mark.parametrize(("message", "change"), REFUSALS)
def test_what_is_not_understood_is_refused(tmp_path: Path, message: str, change: Change) -> None:
    values, weights = samples.metadata("llama"), samples.tensors("llama")
    change(values, weights)
    with pytest.raises(ModelFilesError, match=message) as refusal:
        convert(tmp_path, "llama", values, weights)
    assert "tiny.gguf" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    values = {key.replace("llama.", "mamba."): value for key, value in samples.metadata("llama").items()}
    with pytest.raises(ModelFilesError, match=r"architecture mamba, which is not supported \(supported: llama, qwen2"):
        convert(tmp_path, "mamba", values, samples.tensors("llama"))


@pytest.mark.parametrize(
    ("type_id", "message"),
    [
        (int(GGMLQuantizationType.Q8_K), "type Q8_K, which the installed gguf package cannot"),
        (250, "has type 250, which"),
    ],
)
def test_a_tensor_type_without_dequantization_is_refused(tmp_path: Path, type_id: int, message: str) -> None:
    values = samples.metadata("llama") | {"llama.feed_forward_length": 256}  # one block of Q8_K
    weights = samples.tensors("llama")
    for layer in range(samples.LAYERS):
        weights[f"blk.{layer}.ffn_down.weight"] = np.zeros((samples.HIDDEN, 256), np.float32)
        for name in ("ffn_gate", "ffn_up"):
            weights[f"blk.{layer}.{name}.weight"] = np.zeros((256, samples.HIDDEN), np.float32)
    path = samples.write_gguf(tmp_path / "tiny.gguf", "llama", values, weights)
    content = bytearray(path.read_bytes())
    tensor = b"blk.0.ffn_down.weight"
    at = content.index(tensor) + len(tensor) + 4 + 2 * 8  # behind the name: dimensions, two sizes, type
    content[at : at + 4] = type_id.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFilesError, match=message):
        convert_gguf(path, tmp_path, silent)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    for content, message in (
        (b"", "truncated or damaged"),
        (b"PK\x03\x04 a zip archive", "is not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(64), "GGUF version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(64), "little-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 64, "truncated or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFilesError, match=message):
            read_gguf(path)


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = samples.write_gguf(tmp_path / "whole.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    for cut in (*range(0, len(content), len(content) // 97), len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ModelFilesError, match="truncated"):
            read_gguf(path)


def test_a_damaged_header_never_raises_anything_else(tmp_path: Path) -> None:
    whole = samples.write_gguf(tmp_path / "whole.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    content = whole.read_bytes()
    header_bytes = content.index(b"blk.1.attn_norm.weight") + 64
    chance = random.Random(0)
    refused = 0
    for attempt in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(8, header_bytes)] = chance.randrange(256)
        path, folder = tmp_path / f"{attempt}.gguf", tmp_path / str(attempt)
        path.write_bytes(damaged)
        folder.mkdir()
        try:
            convert_gguf(path, folder, silent)
        except ModelFilesError:
            refused += 1
        path.unlink()
    assert refused > 100


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelFilesError, match=r"needs 0\.00 GB for tiny\.gguf, but its disk has 0\.00 GB free"):
        convert(tmp_path, "llama", samples.metadata("llama"), samples.tensors("llama"))
    assert not list((tmp_path / "model").iterdir())


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    source = samples.write_gguf(tmp_path / "tiny.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    convert_gguf(source, tmp_path, lambda *report: reports.append(report))
    total = sum(tensor.nbytes for tensor in samples.tensors("llama").values())
    assert reports[0] == ("convert", 0, total)
    assert reports[-1] == ("convert", total, total)
    assert reports == sorted(reports)
