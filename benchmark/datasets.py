"""Rows of a dataset: from a local file (JSON lines, JSON, CSV, Parquet), or from the Hugging Face hub.

A row is a dictionary with the column names under which the dataset is published.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PARQUET_BATCH = 256  # rows that are in memory at a time


class DatasetError(ValueError):
    """There are no such rows; the text names the source and the remedy."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file's path, or an id on the hub with the subset and the split that are wanted of it."""

    name: str
    subset: str = ""
    split: str = ""


def read_rows(source: Source) -> Iterator[Row]:
    """The rows, one after the other. Raises DatasetError."""
    path = Path(source.name).expanduser()
    if not path.is_file():
        path = _download(source)
    try:
        yield from _rows_of(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: {error}") from None


def _rows_of(path: Path) -> Iterator[Row]:
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _row(json.loads(line), f"{path}, line {number}")
        case ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise DatasetError(f"{path}: expected a list of objects; an object a line goes into a .jsonl file")
            for number, row in enumerate(rows, 1):
                yield _row(row, f"{path}, item {number}")
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
        case ".parquet":
            yield from _parquet_rows(path)
        case suffix:
            raise DatasetError(f"{path}: {suffix or 'a file without suffix'} is none of {', '.join(SUFFIXES)}")


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DatasetError(
            f'{path}: Parquet files need pyarrow: pip install "quintet[datasets]", or pip install pyarrow'
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DatasetError(f"{path}: {error}") from None


def choose_file(names: list[str], subset: str, split: str) -> str | None:
    """Of a repository's files the first one with rows of that subset and split; None when there is none.

    A repository keeps them as SUBSET/SPLIT-00000-of-00001.parquet, as data/SPLIT-..., or as files of its own names.
    """
    for suffix in SUFFIXES:
        for name in sorted(names):
            folder, _, file = name.rpartition("/")
            if not name.endswith(suffix) or (subset and subset not in folder.split("/")):
                continue
            if not split or re.match(rf"{re.escape(split)}\b|.*[-_.]{re.escape(split)}\b", file.replace("_", "-")):
                return name
    return None


def _download(source: Source) -> Path:
    """The file of a dataset on the hub, from the local cache if it is there."""
    if not HUB_ID.fullmatch(source.name) or source.name.lower().endswith(SUFFIXES):
        raise DatasetError(f"there is no file {source.name}, and it is no Hugging Face id such as owner/name")
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = HfApi().list_repo_files(source.name, repo_type="dataset")
        name = choose_file(names, source.subset, source.split)
        if name is None:
            wanted = " and ".join(filter(None, [source.subset, source.split])) or "anything that can be read"
            raise DatasetError(f"the dataset {source.name} has no file with {wanted}")
        return Path(hf_hub_download(source.name, name, repo_type="dataset"))
    except DatasetError:
        raise
    except Exception as error:  # the hub's client raises what its HTTP library raises, which differs by version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(
            f"cannot get the dataset {source.name} from the Hugging Face hub ({reason}): is there a network?"
            " A local file with the same columns does as well"
        ) from None
