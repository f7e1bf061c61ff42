"""Models from the Hugging Face hub, through its own client and cache."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from model_proc.files.model_files import ModelFilesError, Progress

WANTED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", "spiece.model")
UNWANTED = ("*/*", "consolidated*.safetensors")  # other formats and copies lie in subfolders
REPORT_S = 0.5


def find_cached(model_id: str) -> Path | None:
    """The hub cache's folder of `model_id`, maybe incomplete, or None; the network is not asked."""
    try:
        return _snapshot(model_id, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(model_id: str, progress: Progress) -> Path:
    """Download `model_id` into the hub's cache; what is there already is not fetched again.

    `progress` is called from the calling thread only. Raises ModelFilesError when the download is impossible.
    """
    bytes_seen = {"done": 0, "total": 0}
    progress("download", 0, 0)
    try:
        with ThreadPoolExecutor(1) as pool:
            folder = pool.submit(_snapshot, model_id, tqdm_class=_byte_counter(bytes_seen))
            while wait([folder], REPORT_S).not_done:
                progress("download", bytes_seen["done"], bytes_seen["total"])
            return folder.result()
    except GatedRepoError as error:
        raise ModelFilesError(
            f"the Hugging Face model {model_id} is gated: accept its terms on the hub, then set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelFilesError(
            f"there is no folder {model_id}, and no such model on the Hugging Face hub (a private one needs HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ModelFilesError(f"cannot download {model_id}: the Hugging Face hub says {error.__cause__}") from error
        raise ModelFilesError(
            f"there is no folder {model_id}, and the Hugging Face hub cannot be reached; connect to the network once,"
            " or name a local folder or a .gguf file"
        ) from error
    except Exception as error:  # the client's HTTP library differs between its versions
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelFilesError(
                f"cannot download {model_id}: the disk of the Hugging Face cache is full; free some space, or set"
                " HF_HOME"
            ) from error
        raise ModelFilesError(f"cannot download {model_id}: {type(error).__name__}: {error}") from error


def _snapshot(model_id: str, **options: Any) -> Path:
    return Path(snapshot_download(model_id, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED), **options))


def _byte_counter(bytes_seen: dict[str, int]) -> type[tqdm]:
    """A progress bar class that draws nothing and writes the bytes of all files together into `bytes_seen`."""

    class ByteCounter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Bytes received are counted on a second bar; only those on the disk matter here. A third counts files.
            self._counts_bytes = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                bytes_seen["done"] += int(n or 0)
                bytes_seen["total"] = int(self.total or 0)

    return ByteCounter
