"""GGUF vocabulary to tokenizer.json and tokenizer_config.json.

Two kinds of vocabulary are converted. `gpt2` is byte-level BPE: its merges are in the file, and how text is cut into
words before merging is named by `tokenizer.ggml.pre` (see gguf_pre_tokenizers.py). `llama` is SentencePiece BPE: the
merges follow from the pieces' scores, and characters without a piece fall back to bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from model_proc.files.model_files import ModelFilesError
from model_proc.gguf.file import GgufFile
from model_proc.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space so
SPECIAL_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
SENTENCEPIECE_DEFAULT_IDS = {"unknown": 0, "bos": 1, "eos": 2}


class TokenType(IntEnum):
    """What `tokenizer.ggml.token_type` says about a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the metadata say about the tokenizer; ids index `tokens` and are None where the file names none."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special_ids: dict[str, int | None]  # by role, see read_special_ids
    pre: PreTokenizer | None  # for the byte-level kind
    add_space_prefix: bool
    add_bos: bool
    add_eos: bool

    def token(self, role: str) -> str | None:
        token_id = self.special_ids[role]
        return None if token_id is None else self.tokens[token_id]


def build_tokenizer(file: GgufFile) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of `file` and the content of its tokenizer_config.json.

    Raises ModelFilesError when the vocabulary is of an unsupported kind, or inconsistent.
    """
    vocabulary = _read_vocabulary(file)
    build = _byte_level_bpe if vocabulary.model == "gpt2" else _sentencepiece_bpe
    try:
        tokenizer = build(vocabulary)
    except Exception as error:  # the tokenizers package raises no narrower class
        raise ModelFilesError(f"{file.path} has an inconsistent vocabulary ({error}); fetch it again") from error
    special, plain = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    if vocabulary.add_bos or vocabulary.add_eos:
        tokenizer.post_processor = _wrapper(file, vocabulary)
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
        **{name: vocabulary.token(role) for name, role in roles.items()},
    }
    return tokenizer, config


def read_special_ids(file: GgufFile) -> dict[str, int | None]:
    """The ids of the bos, eos, eot, eom, unknown and padding tokens; None where there is no such token."""
    is_sentencepiece = file.metadata.get("tokenizer.ggml.model") == "llama"
    defaults = SENTENCEPIECE_DEFAULT_IDS if is_sentencepiece else {}
    return {role: _read(file, f"{role}_token_id", int, defaults.get(role)) for role in SPECIAL_ROLES}


def _read(file: GgufFile, key: str, kind: type, default: Any) -> Any:
    """Metadata value `tokenizer.ggml.KEY`, which must be a `kind`."""
    value = file.metadata.get(f"tokenizer.ggml.{key}", default)
    if value is not None and type(value) is not kind:
        raise ModelFilesError(
            f"{file.path} is damaged: tokenizer.ggml.{key} is a {type(value).__name__}; fetch it again"
        )
    return value


def _read_vocabulary(file: GgufFile) -> Vocabulary:
    def read(key: str, kind: type, default: Any) -> Any:
        return _read(file, key, kind, default)

    model = read("model", str, "none")
    if model not in ("gpt2", "llama"):
        raise ModelFilesError(
            f"{file.path} has the tokenizer {model}, which is not supported (supported: gpt2, llama); use the model's"
            " safetensors folder instead"
        )
    pre = None
    if model == "gpt2":
        name = read("pre", str, "none")
        pre = PRE_TOKENIZERS.get(name)
        if pre is None:
            raise ModelFilesError(
                f"{file.path} has the pre-tokenizer {name}, which is not supported (supported:"
                f" {', '.join(PRE_TOKENIZERS)}); use the model's safetensors folder instead"
            )
    tokens = read("tokens", list, [])
    vocabulary = Vocabulary(
        model=model,
        tokens=tokens,
        types=read("token_type", list, [TokenType.NORMAL] * len(tokens)),
        scores=read("scores", list, []),
        merges=read("merges", list, []),
        special_ids=read_special_ids(file),
        pre=pre,
        add_space_prefix=read("add_space_prefix", bool, model == "llama"),
        add_bos=read("add_bos_token", bool, pre.adds_bos if pre else True),
        add_eos=read("add_eos_token", bool, False),
    )
    _check(file, vocabulary)
    return vocabulary


def _check(file: GgufFile, vocabulary: Vocabulary) -> None:
    """Raises ModelFilesError unless the lists fit together."""
    size = len(vocabulary.tokens)
    out_of_range = [token_id for token_id in vocabulary.special_ids.values() if not 0 <= (token_id or 0) < size]
    if size == 0:
        problem = "no tokens"
    elif len(vocabulary.types) != size:
        problem = f"{size} tokens, but {len(vocabulary.types)} token types"
    elif len(set(vocabulary.tokens)) != size:
        problem = "the same token twice"
    elif out_of_range:
        problem = f"the special token {out_of_range[0]}, but {size} tokens"
    elif vocabulary.model == "llama" and not vocabulary.merges and len(vocabulary.scores) != size:
        problem = f"{size} tokens, but {len(vocabulary.scores)} scores"
    elif vocabulary.model == "gpt2" and not vocabulary.merges:
        problem = "no merges"
    else:
        return
    raise ModelFilesError(f"{file.path} has an inconsistent vocabulary ({problem}); fetch it again")


def _byte_level_bpe(vocabulary: Vocabulary) -> Tokenizer:
    assert vocabulary.pre is not None
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    merges = _pairs(vocabulary.merges)
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=vocabulary.pre.ignores_merges))
    tokenizer.normalizer = vocabulary.pre.normalizer()
    tokenizer.pre_tokenizer = vocabulary.pre.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(vocabulary: Vocabulary) -> Tokenizer:
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    merges = _pairs(vocabulary.merges) or _merges_by_score(vocabulary)
    unknown = vocabulary.token("unknown")
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = vocabulary.add_space_prefix
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE_MARK)] if prefix else []), normalizers.Replace(" ", SPACE_MARK)]
    )
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """Merges are written `left right`, and neither part holds a space."""
    pairs = []
    for merge in merges:
        left, right = merge.split(" ")
        pairs.append((left, right))
    return pairs


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores mean: any two pieces join into a piece, the best score first.

    Only normal pieces take part: control, byte and user-defined pieces are never formed from smaller ones.
    Source: https://github.com/google/sentencepiece, `bpe_model.cc`.
    """
    pieces = {
        token: (token_id, vocabulary.scores[token_id])
        for token_id, token in enumerate(vocabulary.tokens)
        if vocabulary.types[token_id] == TokenType.NORMAL
    }
    merges = []
    for piece, (_, score) in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-score, pieces[left][0], pieces[right][0], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _wrapper(file: GgufFile, vocabulary: Vocabulary) -> processors.TemplateProcessing:
    """Puts the begin and end tokens around a text that is encoded with special tokens."""
    wanted = {"bos": vocabulary.add_bos, "eos": vocabulary.add_eos}
    named: dict[str, tuple[str, int]] = {}
    for role in (role for role, is_wanted in wanted.items() if is_wanted):
        token, token_id = vocabulary.token(role), vocabulary.special_ids[role]
        if token is None or token_id is None:
            raise ModelFilesError(f"{file.path} wants a {role} token around each text, but names none; fetch it again")
        named[role] = (token, token_id)

    def template(sequence: str, type_id: int) -> list[str]:
        parts = [named["bos"][0]] if "bos" in named else []
        parts = [*parts, sequence, *([named["eos"][0]] if "eos" in named else [])]
        return [f"{part}:{type_id}" for part in parts]

    return processors.TemplateProcessing(
        single=template("$A", 0), pair=template("$A", 0) + template("$B", 1), special_tokens=list(named.values())
    )
