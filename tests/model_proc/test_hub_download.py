"""Models from the Hugging Face hub: the real client against a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from safetensors.numpy import save

REPOSITORY = Path(__file__).parents[2]
COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": save({"weight": np.ones((64, 64), np.float32)}),
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"a second copy",
    "original/params.json": b"another format",
}
RESOLVE = """
import sys
from pathlib import Path
from model_proc.files.checkpoint import ModelFilesError, resolve
for model in sys.argv[2:]:
    try:
        files = resolve(model, Path(sys.argv[1]), lambda phase, done, total: print("progress", phase))
        print("found", files.name, files.folder, files.tokenizer_folder)
    except ModelFilesError as error:
        print("refused", error)
"""


class Hub(ThreadingHTTPServer):
    """Answers for the one model acme/tiny; counts the requests."""

    daemon_threads = True
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.requests += 1
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/acme/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith("/api/models/acme/tiny"):
            names = [{"rfilename": name} for name in FILES]
            self.answer(200, json.dumps({"id": "acme/tiny", "sha": COMMIT, "siblings": names}).encode())
        elif path.startswith("/acme/tiny/resolve/"):
            content = FILES[path.split("/", 5)[5]]
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
        elif "gated" in path:
            self.answer(403, b"", **{"X-Error-Code": "GatedRepo"})
        elif "broken" in path:
            self.answer(400, b"")
        else:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not printed."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def resolve(home: Path, endpoint: str, *models: str, **environment: str) -> list[str]:
    """What a fresh process says: the hub's client reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, str(home / "cache"), *models],
        env={**os.environ, **settings},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_a_model_is_downloaded_once_and_only_what_is_needed(hub: Hub, tmp_path: Path) -> None:
    said = resolve(tmp_path, address(hub), "acme/tiny")
    folder = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    assert said[0] == "progress download"
    assert said[-1] == f"found acme/tiny {folder} {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    asked = hub.requests
    assert resolve(tmp_path, address(hub), "acme/tiny") == [said[-1]]
    assert hub.requests == asked


def test_an_incomplete_copy_is_completed(hub: Hub, tmp_path: Path) -> None:
    said = resolve(tmp_path, address(hub), "acme/tiny")
    folder = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    (folder / "model.safetensors").unlink()
    assert resolve(tmp_path, address(hub), "acme/tiny")[-1] == said[-1]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_refusals_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    said = resolve(tmp_path, address(hub), "acme/nothing", "acme/gated", "acme/broken", "acme/a--b")
    refusals = [line for line in said if line.startswith("refused")]
    assert refusals[0].startswith("refused there is no folder acme/nothing, and no such model on the Hugging Face hub")
    assert refusals[1].startswith("refused the Hugging Face model acme/gated is gated: accept its terms")
    assert refusals[2].startswith("refused cannot download acme/broken: the Hugging Face hub says ")
    assert refusals[3].startswith("refused there is no folder acme/a--b, and no such model")
    assert len(refusals) == 4


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network(hub: Hub, tmp_path: Path, environment: dict[str, str]) -> None:
    said = resolve(tmp_path, address(hub), "acme/tiny")
    nobody = "http://127.0.0.1:9"
    assert resolve(tmp_path, nobody, "acme/tiny", **environment) == [said[-1]]
    assert resolve(tmp_path, nobody, "acme/other", **environment)[-1] == (
        "refused there is no folder acme/other, and the Hugging Face hub cannot be reached; connect to the network"
        " once, or name a local folder or a .gguf file"
    )
