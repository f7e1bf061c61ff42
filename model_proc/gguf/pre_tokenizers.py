"""How byte-level vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

Only names whose original tokenizer is known are listed: a wrong cut gives wrong ids without any error.
Source of the patterns: the tokenizer.json files of the models named beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer as HfPreTokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How to cut. Without a `pattern` it is GPT-2's, which the byte-level step brings along."""

    pattern: str = ""
    single_digits: bool = False
    composes: bool = False
    """Unicode is brought to its composed form (NFC) first."""
    ignores_merges: bool = False
    """A word that is a token as a whole is taken as it is, even where no merges lead to it."""
    adds_bos: bool = False
    """What holds where the file has no `add_bos_token`."""

    def build(self) -> HfPreTokenizer:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.pattern)
        steps: list[HfPreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if self.single_digits else []
        if self.pattern:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        return pre_tokenizers.Sequence([*steps, byte_level])

    def normalizer(self) -> Normalizer | None:
        return normalizers.NFC() if self.composes else None


_LLAMA3 = PreTokenizer(LLAMA3, ignores_merges=True, adds_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),  # SmolLM, SmolLM2
    "llama-bpe": _LLAMA3,  # Llama 3 to 3.3
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": PreTokenizer(QWEN2, composes=True),  # Qwen2, Qwen2.5, Qwen3
    "tekken": PreTokenizer(TEKKEN, ignores_merges=True, adds_bos=True),  # Mistral Nemo and later
}
